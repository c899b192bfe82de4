"""The table of messages: every message is provoked as a user would."""

import errno
import json
import os
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_dola import ImageWriter
from lit_dola.callbacks import writer
from lit_dola.decoding.loop import TokenGenerator
from lit_dola.runs.claim import Claim
from lit_dola.runs.image_file import encode_image
from tests.support.commands import ROOT

PAGE = ROOT / "docs/troubleshooting.md"
MESSAGES = re.findall(r"^\| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.M)


@pytest.fixture
def predict(main_here, tiny_checkpoint, tmp_path):
    """Run the command line in this process; returns its exit code and stderr."""
    (tmp_path / "prompt.json").write_text('["a cat"]')

    def run(*args, subcommand="predict"):
        done = main_here(
            tmp_path, subcommand, "--trainer.accelerator=cpu", "--trainer.devices=1",
            f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2", *args,
        )  # fmt: skip
        return done.returncode, done.stderr

    return run


@pytest.fixture
def spoilt(tiny_checkpoint, tmp_path):
    """A copy of the checkpoint whose weights a function has changed."""

    def make(change):
        shutil.copytree(tiny_checkpoint, tmp_path / "spoilt")
        path = tmp_path / "spoilt" / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path)
        return f"--model.model_path={tmp_path / 'spoilt'}"

    return make


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "outputs/x")


def out_of_memory(images):
    """A token loop that runs out of memory above so many images."""
    call = TokenGenerator.__call__

    def limited(self, prompts, keys, on_step=None):
        if len(prompts) > images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return call(self, prompts, keys, on_step)

    return limited


CASES = {}


def case(fragment):
    """Register the function that provokes the message containing this fragment."""
    return lambda function: CASES.setdefault(fragment, function)


@case("prompt.json: not readable")
def missing_file(predict, tmp_path, **_):
    (tmp_path / "prompt.json").unlink()
    return predict(), 1


@case("not JSON")
def bad_json(predict, tmp_path, **_):
    (tmp_path / "prompt.json").write_text('["a",\n  ]')
    return predict(), 1


@case("no prompt; expected one of the keys")
def no_prompt(predict, tmp_path, **_):
    (tmp_path / "prompt.json").write_text('["a", {"title": "b"}]')
    return predict(), 1


@case("tokens; expected at most")
def long_prompt(predict, tmp_path, **_):
    (tmp_path / "prompt.json").write_text(json.dumps(["a " * 2000]))
    return predict(), 1


@case("pixels are NaN")
def pixels_not_finite(predict, spoilt, **_):
    name = "model.vqmodel.quantize.embedding.weight"
    return predict(spoilt(lambda weights: weights[name].fill_(float("nan")))), 1


@case("prompt_json: empty")
def empty_path(predict, **_):
    return predict("--data.prompt_json="), 1


@case("is writing to")
def other_run(predict, tmp_path, **_):
    (tmp_path / "outputs").mkdir()
    claim = Claim(tmp_path / "outputs", {"alpha": 0.5})
    claim.take()
    found = predict()
    claim.release()
    return found, 1


@case("images are missing")
def ended_early(predict, **_):
    flags = ["--trainer.limit_predict_batches=1", "--model.images_per_batch=1"]
    return predict(*flags), 1


@case("not readable as an image")
def broken_image(predict, tmp_path, **_):
    """Of a prompt that is no longer in the file."""
    (tmp_path / "outputs" / "00001_old").mkdir(parents=True)
    (tmp_path / "outputs" / "00001_old" / "img_00.jpg").write_bytes(b"")
    return predict("--writer.grid=true"), 1


@case("Git LFS pointer")
def lfs_pointer(predict, spoilt, tmp_path, **_):
    path = spoilt(lambda weights: None)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "spoilt" / "model.safetensors").write_text(pointer)
    return predict(path), 1


def edit(folder, change):
    """Change the config of a checkpoint."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@case("no Janus can be built")
def wrong_activation(predict, spoilt, tmp_path, **_):
    path = spoilt(lambda weights: None)
    edit(tmp_path / "spoilt", lambda config: config["text_config"].update(hidden_act="siluu"))
    return predict(path), 1


@case("chosen by the name")
def guessed_roles(predict, spoilt, tmp_path, **_):
    path = spoilt(lambda weights: None)
    (tmp_path / "spoilt" / "chat_template.jinja").unlink()
    return predict(path), 0


@case("temperature: null")
def null(predict, tmp_path, **_):
    (tmp_path / "null.yaml").write_text("model:\n  temperature:\n")
    return predict("--config=null.yaml"), 1


@case("the ids 'a/b' and 'a:b'")
def equal_names(predict, tmp_path, **_):
    prompts = [{"id": "a/b", "prompt": "a"}, {"id": "a:b", "prompt": "b"}]
    (tmp_path / "prompt.json").write_text(json.dumps(prompts))
    flags = ["--export=dpg", "--scorer=null", "--model.parallel_size=1"]
    return evaluate(tmp_path, predict, *flags), 1


@case("whose gallery would be replaced")
def page_in_a_run(main_here, predict, tmp_path, **_):
    for name, alpha in (("one", 0.1), ("two", 0.2)):
        assert predict(f"--writer.output_dir={name}", f"--model.alpha={alpha}")[0] == 0
    done = main_here(tmp_path, "compare", "one", "two", "--output=one")
    return (done.returncode, done.stderr), 1


@case("precision: bf16-mixed")
def mixed_precision(predict, **_):
    return predict("--trainer.precision=bf16-mixed"), 1


@case("ddp_spawn copies")
def spawn(predict, **_):
    return predict("--trainer.strategy=ddp_spawn"), 1


@case("logits are NaN")
def not_finite(predict, spoilt, **_):
    path = spoilt(lambda weights: weights["model.generation_head.vision_head.weight"].fill_(1e38))
    return predict(path), 1


@case("skipped, see")
def skipped(predict, tmp_path, **_):
    (tmp_path / "prompt.json").write_text('["a", 3, 4]')
    return predict("--data.on_error=skip"), 3


@case("holds images of another run")
def mismatch(predict, **_):
    assert predict() == (0, "")
    return predict("--model.alpha=0.2"), 1


@case("not the record of an image")
def foreign_folder(predict, tmp_path, **_):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "metadata.jsonl").write_text('{"file_name": "x.png"}\n')
    return predict(), 1


@case("a symbolic link")
def link(predict, tmp_path, **_):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "00000_a_cat").symlink_to(tmp_path)
    return predict(), 1


@case("No space left on device")
def full_disk(predict, monkeypatch, **_):
    monkeypatch.setattr(writer, "write_atomically", no_space)
    return predict(), 1


@case("no folder './nowhere'")
def no_folder(predict, **_):
    return predict("--model.model_path=./nowhere"), 1


@case("is not a local folder, and it could not be fetched")
def no_network(predict, **_):
    return predict("--model.model_path=deepseek-ai/Janus-Pro-7B"), 1


@case("weights do not fit its config.json; missing")
def missing_weight(predict, spoilt, **_):
    return predict(spoilt(lambda weights: weights.pop("model.language_model.norm.weight"))), 1


@case("not readable as weights")
def short_file(predict, spoilt, tmp_path, **_):
    path = spoilt(lambda weights: None)
    os.truncate(tmp_path / "spoilt" / "model.safetensors", 1000)
    return predict(path), 1


@case("is not a middle layer")
def wrong_layer(predict, **_):
    return predict("--model.layer=8"), 1


@case("torchao is not installed")
def no_torchao(predict, monkeypatch, **_):
    monkeypatch.setattr("lit_dola.errors.find_spec", lambda name: None)
    return predict("--model.quantize=int8wo"), 1


def evaluate(tmp_path, predict, *args):
    """The same with ``evaluate`` and two variants."""
    (tmp_path / "evaluate.yaml").write_text(
        "variants: {baseline: {dola: false}, sharp: {alpha: 0.3}}\n"
        "scorer: {class_path: tests.test_evaluation.Redness}\n"
    )
    return predict("--config=evaluate.yaml", *args, subcommand="evaluate")


@case("matplotlib is not installed")
def no_matplotlib(predict, tmp_path, monkeypatch, **_):
    monkeypatch.setattr("lit_dola.errors.find_spec", lambda name: None)
    return evaluate(tmp_path, predict), 1


@case("applies to all variants")
def seed_of_a_setting(predict, tmp_path, **_):
    return evaluate(tmp_path, predict, "--variants={sharp: {seed: 3}}"), 1


@case("is not a variant")
def other_reference(predict, tmp_path, **_):
    return evaluate(tmp_path, predict, "--reference=nothing"), 1


@case("has no id")
def no_id(predict, tmp_path, **_):
    return evaluate(tmp_path, predict, "--export=dpg", "--scorer=null"), 1


@case("2 images of prompt")
def two_images(predict, tmp_path, **_):
    (tmp_path / "dpg").mkdir()
    (tmp_path / "dpg" / "a.txt").write_text("a cat")
    flags = ["--export=dpg", "--scorer=null", "--data.prompt_json=dpg"]
    return evaluate(tmp_path, predict, *flags), 1


@case("inspect: DoLa is off")
def nothing_to_inspect(predict, **_):
    return predict("--model.dola=false", "--model.inspect=[[0, 0]]"), 1


@case("is not an image of this run")
def no_such_image(predict, **_):
    return predict("--model.inspect=[[0, 9]]"), 1


@case("no image is in all of")
def other_prompts(main_here, predict, tmp_path, **_):
    assert predict("--writer.output_dir=one")[0] == 0
    (tmp_path / "prompt.json").write_text('["another"]')
    assert predict("--writer.output_dir=two")[0] == 0
    done = main_here(tmp_path, "compare", "one", "two", "--output=page")
    return (done.returncode, done.stderr), 1


@case("no images of a run")
def no_run(main_here, tmp_path, **_):
    done = main_here(tmp_path, "compare", "outputs/nothing", "outputs", "--output=page")
    return (done.returncode, done.stderr), 1


@case("Requirement 'wandb")
def no_wandb(predict, monkeypatch, **_):
    class Missing:
        __bool__ = staticmethod(lambda: False)
        __str__ = staticmethod(lambda: "Requirement 'wandb>=0.12.10' not met. HINT: install it")

    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", Missing())
    return predict("--trainer.logger=WandbLogger"), 1


@case("did you mean")
def misspelt(predict, **_):
    return predict("--model.alhpa=0.2"), 2


@case("is now called model.apc")
def old_name(predict, **_):
    return predict("--model.head=cond"), 0


@case("DeepSeek's janus is not installed")
def no_janus(predict, monkeypatch, **_):
    monkeypatch.setattr("lit_dola.janus.deepseek.find_spec", lambda name: None)
    return predict("--model.backend=deepseek"), 1


@case("at most 1 images at once")
def too_many(predict, monkeypatch, **_):
    monkeypatch.setattr(TokenGenerator, "__call__", out_of_memory(1))
    return predict(), 0


@case("out of memory at 1 image")
def too_large(predict, monkeypatch, **_):
    monkeypatch.setattr(TokenGenerator, "__call__", out_of_memory(0))
    return predict("--model.images_per_batch=1"), 1


@case("on a machine without a GPU")
def wrong_trainer(predict, **_):
    return predict("--trainer.accelerator=gpu"), 1


@case("another rank ended early")
def other_rank(predict, monkeypatch, **_):
    def lost(*_args, **_kwargs):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "barrier", lost)
    setup = ImageWriter.setup

    def as_if_there_were_more(self, *args, **kwargs):
        setup(self, *args, **kwargs)
        self._ranks = object()

    monkeypatch.setattr(ImageWriter, "setup", as_if_there_were_more)
    return predict(), 1


@case("stopped by SIGTERM")
def stopped(predict, monkeypatch, **_):
    def stop(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return encode_image(*args)

    monkeypatch.setattr(writer, "encode_image", stop)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    done = predict("--model.images_per_batch=1", "--model.parallel_size=50")
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    return done, 143


def test_the_table_and_the_cases_agree():
    assert len(MESSAGES) == len(CASES)
    for message in MESSAGES:
        assert sum(fragment in message for fragment in CASES) == 1, message


@pytest.mark.slow
@pytest.mark.parametrize("fragment", CASES)
def test_message(fragment, predict, spoilt, main_here, monkeypatch, tmp_path):
    (message,) = (message for message in MESSAGES if fragment in message)
    found, code = CASES[fragment](
        predict=predict,
        spoilt=spoilt,
        main_here=main_here,
        monkeypatch=monkeypatch,
        tmp_path=tmp_path,
    )
    assert found[0] == code
    assert found[1].count("\n") == 1
    pattern = ".*".join(re.escape(part) for part in message.split("…"))
    assert re.search(pattern, found[1]), found[1]
