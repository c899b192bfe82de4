"""Settings that cannot work are refused before anything is loaded; those that should work do."""

import json
import shutil
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_dola import JanusPipeline
from lit_dola.cli.tasks import ParsedTask
from lit_dola.errors import UserError
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.settings.declared import refuse_null, settings_of
from lit_dola.tasks.generate import LitDoLa
from tests.support.commands import one_line, records
from tests.support.scoring import sample


@pytest.fixture
def predict(main_here, tiny_checkpoint, tmp_path):
    (tmp_path / "prompt.json").write_text('["a cat", "a dog"]')

    def run(*args):
        common = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--model.parallel_size=2"]
        model = f"--model.model_path={tiny_checkpoint}"
        return main_here(tmp_path, "predict", *common, model, *args)

    return run


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("lit_dola.tasks.generate.load_janus", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        "model.model_path",
        "model.alpha",
        "data.on_error",
        "writer.format",
        "image_logger.max_images",
    ],
)
def test_null_where_none_can_be(setting, main_here, tmp_path, nothing_is_loaded):
    group, name = setting.split(".")
    (tmp_path / "null.yaml").write_text(f"{group}:\n  {name}:\n")
    done = main_here(tmp_path, "predict", "--config=null.yaml")
    one_line(done, 1, f"{setting}: null;")


@pytest.mark.parametrize("task", ["predict", "answer", "rank"])
def test_each_setting_that_cannot_be_null_is_refused(task):
    for group, owner in ParsedTask(task).groups.items():
        for name, setting in settings_of(owner).items():
            if type(None) in get_args(setting.type):
                refuse_null(owner, {name: None}, f"{group}.")
                continue
            with pytest.raises(UserError, match=rf"^{group}\.{name}: null; expected a value"):
                refuse_null(owner, {name: None}, f"{group}.")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16"])
def test_precisions_that_cannot_work(precision, predict, nothing_is_loaded):
    done = predict(f"--trainer.precision={precision}")
    one_line(done, 1, "trainer.precision: bf16-mixed; expected 32-true, bf16-true")


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_strategies_that_cannot_work(strategy, predict, nothing_is_loaded):
    done = predict(f"--trainer.strategy={strategy}")
    one_line(done, 1, f"trainer.strategy: {strategy} copies a running process; expected ddp")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.enable_progress_bar=false"],
        ["--trainer.barebones=true"],
        ["--trainer.callbacks=TQDMProgressBar"],
        ["--trainer.callbacks+=ModelSummary"],
    ],
    ids=str,
)
def test_settings_of_the_trainer_that_work(flags, predict, tmp_path):
    done = predict(*flags)
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path / "outputs")) == 4


@pytest.mark.parametrize(
    "flag",
    ["--data.prompt_json=", "--writer.output_dir=", "--model.model_path=", "--data.prompt_json= "],
)
def test_an_empty_path_is_not_the_working_directory(flag, predict, tmp_path, nothing_is_loaded):
    (tmp_path / "requirements.txt").write_text("torch")
    one_line(predict(flag), 1, "empty; expected a path")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("order", [("flag", "config"), ("config", "flag")])
def test_flags_win_wherever_they_stand(order, predict, tmp_path):
    (tmp_path / "some.yaml").write_text("model:\n  alpha: 0.5\n  seed: 3\n")
    arguments = {"flag": ["--model.alpha=0.2"], "config": ["--config", "some.yaml"]}
    done = predict(*arguments[order[0]], *arguments[order[1]])
    assert done.returncode == 0, done.stderr
    assert {(line["alpha"], line["seed"]) for line in records(tmp_path / "outputs")} == {(0.2, 3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag", ["--trainer.limit_predict_batches=1", "--trainer.fast_dev_run=true"]
)
def test_exit_code_0_means_that_everything_is_there(flag, predict, tmp_path):
    one_line(predict(flag, "--model.images_per_batch=1"), 1, "3 of 4 images are missing")
    assert len(records(tmp_path / "outputs")) == 1
    assert predict().returncode == 0
    assert len(records(tmp_path / "outputs")) == 4


@pytest.mark.parametrize("temperature", [1e-320, 1e-44, 1e-9, 1e9, 1e38, 1e39, 1e308])
def test_no_temperature_draws_a_token_that_may_not_be_drawn(temperature):
    scores = torch.full((50, 64), float("-inf"))
    scores[:, 40:44] = torch.randn(50, 4) * 30
    noise = torch.randn(50, 64) * 20
    token = sample(scores, noise, temperature=temperature)
    assert ((token >= 40) & (token < 44)).all()


@pytest.mark.parametrize("value", ["inf", ".inf", "nan", "1e999"])
@pytest.mark.parametrize("name", ["temperature", "cfg_weight"])
def test_settings_are_finite(name, value, predict, nothing_is_loaded):
    one_line(predict(f"--model.{name}={value}"), 2, f"model.{name}")


@pytest.mark.slow
def test_other_weights_under_the_same_path_are_another_run(predict, tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "m")
    assert predict("--model.model_path=m").returncode == 0
    assert predict("--model.model_path=m/").returncode == 0
    assert predict(f"--model.model_path={tiny_checkpoint}").returncode == 0  # the same content
    weights = load_file(copy / "model.safetensors")
    changed = {name: weight * 1.01 for name, weight in weights.items()}  # of the same shapes
    save_file(changed, copy / "model.safetensors", {"format": "pt"})
    one_line(predict("--model.model_path=m"), 1, 'checkpoint was "sha256:')


@pytest.mark.slow
def test_metadata_that_has_changed_reaches_the_records(predict, tmp_path):
    for count in (3, 2):
        entries = [{"prompt": "a cat", "count": count}, {"prompt": "a dog"}]
        (tmp_path / "prompt.json").write_text(json.dumps(entries))
        assert predict().returncode == 0
        found = [line["metadata"] for line in records(tmp_path / "outputs")]
        assert found == [{"count": count}] * 2 + [{}] * 2


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("Janus-1.3B", "base"),
        ("janus-1.3b", "base"),
        ("Janus-1.3B-main", "base"),
        ("models--deepseek-ai--Janus-1.3B/snapshots/" + "0" * 40, "base"),
        ("Janus-Pro-1B", "pro"),
        ("Janus-Pro-7B", "pro"),
        ("JanusFlow-1.3B", "pro"),
        ("Janus-1.3B/mine", "pro"),
    ],
)
def test_roles_by_name(name, roles, tiny_checkpoint, tmp_path):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    shutil.copy(tiny_checkpoint / "tokenizer.json", folder)
    encoder = PromptEncoder(folder, name=str(folder) + "/")
    assert encoder.roles == roles
    assert encoder.chosen_by
    assert PromptEncoder(folder, "pro").chosen_by is None


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return JanusPipeline.from_pretrained(tiny_checkpoint)  # a Path


def test_tokens_of_one_image_as_numpy_reads_them(pipeline, tmp_path):
    made = pipeline.generate("a cat", parallel_size=1)
    np.save(tmp_path / "img_00.npy", made.tokens[0].numpy())
    (image,) = pipeline.decode(np.load(tmp_path / "img_00.npy"))
    assert np.array_equal(np.asarray(image), np.asarray(made.images[0]))
    assert len(pipeline.decode(made.tokens.tolist())) == 1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros(15, np.int32), r"shape \(15,\)"),
        (np.zeros((1, 1, 16), np.int32), r"shape \(1, 1, 16\)"),
        (np.zeros(16, np.float32), "float32"),
        (np.zeros(16, bool), "bool"),
        (np.full(16, -1), "-1 to -1"),
        (np.full(16, 1024), "1024 to 1024"),
        ("text", "tokens: "),
        (None, "tokens: "),
    ],
)
def test_tokens_that_are_none(pipeline, tokens, message):
    with pytest.raises(UserError, match=message):
        pipeline.decode(tokens)


@pytest.mark.parametrize("prompts", [None, 3, {"a": "b"}, b"a"])
def test_prompts_that_are_none(pipeline, prompts):
    with pytest.raises(UserError, match=r"prompts: found .*; expected a text or a list of texts"):
        pipeline.generate(prompts)


@pytest.mark.parametrize("device", ["cuda:99", "mps", "nonsense"])
def test_devices_that_are_not_there(tiny_checkpoint, device):
    with pytest.raises(UserError, match="device: "):
        JanusPipeline.from_pretrained(tiny_checkpoint, device=device)


FLOATS = ["alpha", "strength", "cfg_weight", "temperature", "top_p", "min_p", "entropy_temperature"]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("number", [10**400, -(10**400)], ids=["large", "small"])
def test_an_integer_that_no_float_can_hold(name, number, main_here, tmp_path):
    value = [number, 1, 1] if name == "entropy_temperature" else number
    with pytest.raises(UserError, match=f"^{name}: "):
        LitDoLa.checked({name: value})
    (tmp_path / "c.yaml").write_text(json.dumps({"model": {name: value}}))
    done = main_here(tmp_path, "predict", "--config=c.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: c.yaml: Parser key "model.{name}": ')
    assert done.stderr.count("\n") == 1
