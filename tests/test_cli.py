"""The command line as users run it: in its own process and its own folder."""

import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lit_dola.janus.tokenizer import PromptEncoder
from recipes.shapes.pictures import write_held_out
from tests.support import forked, original, reference
from tests.support.commands import CPU, ROOT, files, messages, one_line, records, succeed
from tests.support.plain_janus import PlainJanus


@pytest.fixture
def folder(tmp_path):
    """The files that a user has after cloning, without the installed package."""
    shutil.copy(ROOT / "main.py", tmp_path)
    shutil.copy(ROOT / "prompt.json", tmp_path)
    for part in ("configs", "recipes", "checkpoints/shapes-janus", "checkpoints/shapes-siglip"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).symlink_to(ROOT / part)
    return tmp_path


@pytest.fixture
def predict(folder):
    """Run ``python main.py predict ...`` in the folder, forked to save the time of imports."""
    return lambda *args, **environment: forked.run(folder, ["predict", *args], **environment)


@pytest.fixture
def python(folder):
    """Run ``python main.py predict ...`` in the folder."""

    def run(*args, **environment):
        return subprocess.run(
            [sys.executable, "main.py", "predict", *map(str, args)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )

    return run


@pytest.fixture
def parse(folder, main_here):
    """The same in this process, which is faster, for runs that end before generating anything."""
    return partial(main_here, folder)


@pytest.fixture
def small(tiny_checkpoint, folder):
    """Arguments that make the given configuration small enough for a test."""
    (folder / "two.json").write_text('["a red apple", "two blue birds on a branch"]')
    return [
        *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2",
        "--model.images_per_batch=3", "--data.prompt_json=two.json", "--writer.save_tokens=true",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_pictures_of_the_demo_are_those_of_the_recipe(tmp_path):
    write_held_out(tmp_path, count=14, seed=1)
    shipped = ROOT / "recipes/shapes/demo"
    for name in ("questions.jsonl", "items.jsonl"):
        assert (tmp_path / name).read_text() == (shipped / name).read_text()
    for path in tmp_path.glob("pictures/*.png"):
        with Image.open(path) as mine, Image.open(shipped / "pictures" / path.name) as theirs:
            assert mine.tobytes() == theirs.tobytes()


@pytest.mark.slow
def test_dola_and_baseline(predict, folder, small):
    for config in ("dola", "baseline"):
        succeed(predict("--config", f"configs/{config}.yaml", *small))
    dola, baseline = (records(folder / "outputs" / name) for name in ("dola", "baseline"))
    assert [record["dola"] for record in dola + baseline] == [True] * 4 + [False] * 4
    assert [record["layer"] for record in dola + baseline] == [6] * 4 + [None] * 4
    images = [files(folder / "outputs" / name) for name in ("dola", "baseline")]
    assert images[0].keys() == images[1].keys()
    assert all(images[0][name] != images[1][name] for name in images[0])


def test_baseline_differs_from_dola_in_one_setting_and_the_output_folder():
    dola, baseline = (
        yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        for name in ("dola", "baseline")
    )
    assert (dola["model"].pop("dola"), baseline["model"].pop("dola")) == (True, False)
    folders = {config["writer"].pop("output_dir") for config in (dola, baseline)}
    assert len(folders) == 2
    assert dola == baseline
    assert dola["trainer"] == {"accelerator": "gpu", "devices": "auto", "precision": "bf16-true"}


@pytest.mark.slow
def test_settings_by_flag_yaml_and_environment(predict, folder, small):
    """Flags override files, and files override the environment."""
    (folder / "own.yaml").write_text("model:\n  alpha: 0.3\n  cfg_weight: 3.0\n")
    succeed(
        predict(
            *small, "--config=own.yaml", "--model.cfg_weight=4", "--writer.format=png",
            LIT_DOLA_PREDICT__MODEL__TEMPERATURE="0.5", LIT_DOLA_PREDICT__MODEL__ALPHA="0.9",
        )
    )  # fmt: skip
    for record in records(folder / "outputs"):
        settings = {name: record[name] for name in ("alpha", "cfg_weight", "temperature")}
        assert settings == {"alpha": 0.3, "cfg_weight": 4.0, "temperature": 0.5}
        assert record["file_name"].endswith(".png")


@pytest.mark.slow
def test_print_config_is_a_config(predict, folder, small):
    printed = succeed(predict(*small, "--model.alpha=0.2", "--print_config")).stdout
    assert printed.startswith("# lightning.pytorch==")
    config = yaml.safe_load(printed)
    assert config["model"]["alpha"] == 0.2
    assert config["model"]["cfg_weight"] == 5.0
    (folder / "printed.yaml").write_text(printed)
    succeed(predict("--config=printed.yaml"))
    assert {record["alpha"] for record in records(folder / "outputs")} == {0.2}


def test_defaults_are_those_of_the_old_script(parse):
    config = yaml.safe_load(succeed(parse("predict", "--print_config")).stdout)
    expected = {
        "parallel_size": 8, "cfg_weight": 5.0, "alpha": 0.1, "layer_ratio": 0.8,
        "temperature": 1.0, "dola": True, "apc": "cond", "mid_norm": False,
    }  # fmt: skip
    assert {name: config["model"][name] for name in expected} == expected
    assert config["writer"]["quality"] == 95


@pytest.mark.slow
def test_help_tells_every_setting(predict, parse):
    text = succeed(predict("--help")).stdout
    config = yaml.safe_load(succeed(parse("predict", "--print_config")).stdout)
    for group in ("model", "data", "writer"):
        for name in config[group]:
            assert f"--{group}.{name} " in text
    assert "Threshold of the head set" in text


@pytest.mark.slow
def test_a_run_that_is_done_does_not_load_the_model(predict, folder, small, monkeypatch):
    succeed(predict(*small))
    made = files(folder / "outputs")
    monkeypatch.setattr("lit_dola.tasks.generate.load_janus", None)
    assert messages(succeed(predict(*small)).stderr) == ""
    assert files(folder / "outputs") == made


@pytest.mark.slow
def test_original_layout_gives_the_tokens_of_the_plain_reference(predict, folder, small):
    config = original.make_config(64, 128, 4, 4, vocab_size=512, image_size=64)
    weights = original.small_weights(config)
    checkpoint = folder / "Janus-1.3B"
    original.write_config(checkpoint, config)
    original.write_weights(checkpoint, weights, "pytorch_model.bin", shards=2)
    succeed(
        predict(
            *small, "--model.model_path=Janus-1.3B", "--trainer.precision=64-true", "--model.seed=3"
        )
    )
    encoder, plain = PromptEncoder(checkpoint), PlainJanus(config, weights)
    for record in records(folder / "outputs"):
        tokens = np.load((folder / "outputs" / record["file_name"]).with_suffix(".npy"))
        expected = reference.generate(
            plain,
            encoder.encode(record["prompt"]),
            encoder.pad_token_id,
            layer=3,
            seed=3,
            prompt_index=record["prompt_index"],
            image_index=record["image_index"],
            guess=tokens.tolist(),
        )
        assert tokens.tolist() == expected
        assert encoder.text("x") == "User: x\n\nAssistant:"


@pytest.mark.slow
def test_bf16_true(predict, folder, small):
    succeed(predict(*small, "--trainer.precision=bf16-true"))
    assert len(records(folder / "outputs")) == 4


@pytest.mark.slow
def test_progress_on_a_terminal(folder, small):
    """Images done and tokens of the batch, each with a rate and the remaining time."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))  # rows, columns
    process = subprocess.Popen(
        [sys.executable, "main.py", "predict", *small],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:
        pass  # a terminal reports this way that its other end is closed
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "Images: 100%" in text
    assert "4/4" in text
    assert "Tokens of this batch" in text
    assert "/16 [" in text


def config_file(folder, text):
    (folder / "bad.yaml").write_text(text)
    return "--config=bad.yaml"


ERRORS = {
    "misspelt flag": (["--model.alhpa=0.2"], 2, "--model.alhpa"),
    "misspelt key": ("model:\n  alhpa: 0.2\n", 2, "alhpa"),
    "broken YAML": ("model: [", 2, "bad.yaml"),
    "missing config": (["--config=nowhere.yaml"], 2, "nowhere.yaml"),
    "wrong value": (["--model.alpha=2"], 2, "model.alpha"),
    "wrong choice": (["--model.apc=both"], 2, "model.apc"),
    "wrong type": (["--model.parallel_size=many"], 2, "model.parallel_size"),
    "missing prompt file": (["--data.prompt_json=no.json"], 1, "no.json: not readable: No such"),
    "missing checkpoint": (
        ["--model.model_path=./no/such/folder"],
        1,
        "model.model_path: no folder './no/such/folder'; expected the folder of a Janus checkpoint",
    ),
    "layer out of range": (["--model.layer=8"], 1, "model.layer: 8 is not a middle layer"),
    "unknown strategy": (
        ["--trainer.strategy=dpp"],
        1,
        "trainer: You selected an invalid strategy",
    ),
    "strategy without a GPU": (["--trainer.strategy=fsdp"], 1, "requires a GPU accelerator"),
    "unwritable folder": (
        ["--writer.output_dir=prompt.json/x"],
        1,
        "writer.output_dir: cannot write to prompt.json/x",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_that_says_what_to_do(case, parse, folder, small):
    args, code, message = ERRORS[case]
    if isinstance(args, str):
        args = [config_file(folder, args)]
    one_line(parse("predict", *small, *args), code, message)
    assert not list(folder.glob("outputs/*"))  # not even a temporary file


@pytest.mark.parametrize("case", ["misspelt flag", "missing checkpoint"])
@pytest.mark.slow
def test_errors_in_a_process_of_its_own(case, predict, small):
    args, code, message = ERRORS[case]
    one_line(predict(*small, *args), code, message)


def test_bad_prompt_file(parse, folder, small):
    (folder / "two.json").write_text('["a",\n  ]')
    one_line(parse("predict", *small), 1, "two.json: line 2, column 3: not JSON")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_config_without_a_gpu(parse):
    done = parse("predict", "--config", "configs/dola.yaml")
    one_line(done, 1, "on a machine without a GPU add --trainer.accelerator cpu")


@pytest.mark.parametrize(
    "network",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}],
)
@pytest.mark.slow
def test_hub_name_without_network(predict, python, folder, small, network):
    start = python if network["HF_HUB_OFFLINE"] == "0" else predict  # the other is as in all tests
    done = start(*small, "--model.model_path=Janus-Pro-7B", HF_HOME=str(folder), **network)
    one_line(done, 1, "expected the folder of a downloaded checkpoint")


def test_only_predict_is_offered(parse):
    for command in ("fit", "validate", "test"):
        one_line(parse(command), 2, command)
