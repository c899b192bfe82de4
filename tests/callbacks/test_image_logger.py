"""Images and settings in TensorBoard and Weights & Biases, read back with their own readers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support import forked
from tests.support.commands import CPU, ROOT

pytestmark = pytest.mark.slow

PROMPTS = ["a red apple", "two blue birds on a branch"]


@pytest.fixture
def arguments(tmp_path, tiny_checkpoint):
    (tmp_path / "two.json").write_text(json.dumps(PROMPTS))
    return [
        "predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2",
        "--model.images_per_batch=3", "--data.prompt_json=two.json", "--writer.format=png",
    ]  # fmt: skip


@pytest.fixture
def predict(tmp_path, arguments):
    def run(*args):
        done = forked.run(tmp_path, [*arguments, *args])
        assert done.returncode == 0, done.stderr

    return run


def written(tmp_path, prompt, image):
    (path,) = tmp_path.glob(f"outputs/{prompt:05}_*/img_{image:02}.png")
    with Image.open(path) as opened:
        return np.asarray(opened)


def test_tensorboard(predict, tmp_path):
    predict("--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=logs")
    (folder,) = tmp_path.glob("logs/*/version_0")
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["outputs/00000", "outputs/00001"]
    for prompt, text in enumerate(PROMPTS):
        images = events.Images(f"outputs/{prompt:05}")
        assert [image.step for image in images] == [0, 1]
        for image in images:
            path = tmp_path / "logged.png"
            path.write_bytes(image.encoded_image_string)
            with Image.open(path) as logged:
                assert np.array_equal(np.asarray(logged), written(tmp_path, prompt, image.step))
        (first, _) = events.Tensors(f"outputs/{prompt:05}/text_summary")
        assert first.tensor_proto.string_val[0].decode() == text
    assert "alpha: 0.1" in (folder / "hparams.yaml").read_text()


def test_no_more_images_than_were_asked_for(predict, tmp_path):
    predict(
        "--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=logs",
        "--image_logger.max_images=1",
    )  # fmt: skip
    (folder,) = tmp_path.glob("logs/*/version_0")
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["images"] == ["outputs/00000"]


def test_wandb(arguments, tmp_path):
    logger = ["WandbLogger", "--trainer.logger.save_dir=.", "--trainer.logger.offline=true"]
    command = [sys.executable, ROOT / "main.py", *arguments, "--trainer.logger", *logger]
    # In its own process, because W&B writes its last lines when the interpreter ends.
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "WANDB_SILENT": "true"}, check=True)
    files = [*tmp_path.glob("wandb/offline-run-*/files/media/images/*.png")]
    logged = {Image.open(file).tobytes() for file in files}
    assert logged == {written(tmp_path, p, i).tobytes() for p in range(2) for i in range(2)}
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    assert all(text.encode() in content for text in [*PROMPTS, "layer_ratio"])


def test_a_logger_without_images_gets_the_settings(predict, tmp_path):
    predict("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs")
    (file,) = tmp_path.glob("logs/*/version_0/hparams.yaml")
    assert "cfg_weight: 5.0" in file.read_text()


class Failing(CSVLogger):
    """Fails at one of its calls, as one does that asks for a login or loses its server."""

    def __init__(self, save_dir, at):
        self.at = at
        self.fail_at("creation")
        super().__init__(save_dir)

    def fail_at(self, place):
        if place == self.at:
            raise RuntimeError("No API key configured.\nUse `login`.") from OSError("no key")

    @property
    @rank_zero_experiment
    def experiment(self):
        self.fail_at("start")
        return super().experiment

    def finalize(self, status):
        self.fail_at("end")


@pytest.mark.parametrize("at", ["creation", "start", "end"])
def test_a_logger_that_fails_is_one_line_and_loses_nothing(tmp_path, arguments, at):
    logger = [f"--trainer.logger={__name__}.Failing", "--trainer.logger.save_dir=logs"]
    done = forked.run(tmp_path, [*arguments, *logger, f"--trainer.logger.at={at}"])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: trainer.logger: RuntimeError: No API key configured.; expected a logger that works,"
        " or none"
    )
    assert "Traceback" not in done.stderr
    assert len([*tmp_path.glob("outputs/*/*.png")]) == (4 if at == "end" else 0)
    assert forked.run(tmp_path, arguments).returncode == 0
