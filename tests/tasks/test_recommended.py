"""Settings that travel with a checkpoint, and what overrides them."""

import json
import shutil

import pytest
import yaml

from lit_dola import JanusPipeline, UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.recommended import recommended_settings
from lit_dola.tasks.generate import LitDoLa
from tests.support.commands import messages, one_line, records


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint, and what it recommends."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")

    def recommend(content):
        path = folder / "generation_config.json"
        config = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**config, "lit_dola": content}))
        return folder

    return recommend


@pytest.fixture
def cli(main_here, tmp_path):
    (tmp_path / "prompt.json").write_text('["a cat"]')

    def run(*args, task="predict"):
        common = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--model.parallel_size=1"]
        return main_here(tmp_path, task, *common, "--model.model_path=model", *args)

    return run


def printed(done):
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["model"]


def test_flags_configs_and_the_environment_win(checkpoint, cli, tmp_path, monkeypatch):
    checkpoint({"alpha": 0.3, "strength": 0.2, "cfg_weight": 2, "mid_norm": True, "top_k": 9})
    (tmp_path / "c.yaml").write_text("model: {strength: 0.4}\n")
    monkeypatch.setenv("LIT_DOLA_PREDICT__MODEL__CFG_WEIGHT", "3")
    done = cli("--config=c.yaml", "--model.alpha=0.5", "--print_config")
    found = printed(done)
    assert (found["alpha"], found["strength"], found["cfg_weight"]) == (0.5, 0.4, 3)
    assert (found["mid_norm"], found["top_k"]) == (True, 9)
    assert (found["layer_ratio"], found["temperature"]) == (0.8, 1)  # the defaults
    assert done.stderr == "model recommends mid_norm true, top_k 9\n"


def test_nothing_is_said_where_nothing_is_used(checkpoint, cli):
    checkpoint({"alpha": 0.3})
    assert cli("--model.alpha=0.3", "--print_config").stderr == ""
    checkpoint({"alpha": 0.1})  # the default
    assert cli("--print_config").stderr == ""
    checkpoint({})
    assert printed(cli("--print_config"))["alpha"] == 0.1


@pytest.mark.slow
def test_records_have_what_was_used(checkpoint, cli, tmp_path):
    folder = checkpoint({"alpha": 0.3, "entropy_temperature": [2.5, 3, 0.6]})
    done = cli("--model.strength=0.5")
    said = "model recommends alpha 0.3, entropy_temperature [2.5, 3, 0.6]\n"
    assert (done.returncode, messages(done.stderr)) == (0, said)
    (record,) = records(tmp_path / "outputs")
    assert (record["alpha"], record["strength"]) == (0.3, 0.5)
    assert record["entropy_temperature"] == [2.5, 3.0, 0.6]
    assert cli("--model.strength=0.5").returncode == 0  # it goes on
    (tokens,) = (
        JanusPipeline.from_pretrained(folder)
        .generate("a cat", parallel_size=1, strength=0.5)
        .tokens
    )
    checkpoint({})
    given = {"alpha": 0.3, "strength": 0.5, "entropy_temperature": (2.5, 3, 0.6)}
    pipeline = JanusPipeline.from_pretrained(folder)
    assert pipeline.generate("a cat", parallel_size=1, **given).tokens.tolist() == [tokens.tolist()]
    done = cli("--model.strength=0.5")
    one_line(done, 1, "alpha was 0.3, is 0.1; entropy_temperature was [2.5, 3.0, 0.6], is null")


@pytest.mark.slow
def test_variants_start_from_it(checkpoint, cli, tmp_path):
    checkpoint({"alpha": 0.3, "cfg_weight": 2.0})
    variants = "--variants={a: {dola: false}, b: {alpha: 0.2}}"
    done = cli(variants, "--writer.output_dir=out", task="evaluate")
    assert done.returncode == 0, done.stderr
    for name, alpha in (("a", 0.3), ("b", 0.2)):
        (record,) = records(tmp_path / "out" / name)
        assert (record["alpha"], record["cfg_weight"]) == (alpha, 2.0)


def test_it_does_not_count_as_other_weights(checkpoint):
    one = Checkpoint.open(str(checkpoint({"alpha": 0.3}))).fingerprint
    assert Checkpoint.open(str(checkpoint({"alpha": 0.2}))).fingerprint == one


BAD = {
    "lit_dola is 3; expected an object": 3,
    "lit_dola is []; expected an object": [],
    "lit_dola: alhpa cannot be recommended": {"alhpa": 0.1},
    "lit_dola: parallel_size cannot be recommended": {"parallel_size": 2},
    "lit_dola: model_path cannot be recommended": {"model_path": "elsewhere"},
    "lit_dola: alpha: null": {"alpha": None},
    "lit_dola: alpha: ": {"alpha": 2},
    "lit_dola: apc: ": {"apc": "both"},
    "lit_dola: entropy_temperature: ": {"entropy_temperature": [1, 0, 1]},
}


@pytest.mark.slow
@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_used_is_one_line(message, checkpoint, cli):
    folder = checkpoint(BAD[message])
    one_line(cli(), 1, f"model/generation_config.json: {message}")
    with pytest.raises(UserError):
        JanusPipeline.from_pretrained(folder).generate("a cat")


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_broken_file_is_one_line(content, checkpoint, cli):
    (checkpoint({}) / "generation_config.json").write_bytes(content.encode("latin-1"))
    one_line(cli(), 1, "model/generation_config.json: ")


def test_of_a_name_on_the_hub_that_one_file_is_fetched(checkpoint, monkeypatch):
    path = checkpoint({"alpha": 0.3}) / "generation_config.json"
    asked = []
    monkeypatch.setattr(
        "lit_dola.janus.checkpoint.hf_hub_download", lambda *args: asked.append(args) or str(path)
    )
    assert recommended_settings("somebody/their-janus", LitDoLa) == {"alpha": 0.3}
    assert asked == [("somebody/their-janus", "generation_config.json")]
    for name in ("deepseek-ai/Janus-Pro-7B", "deepseek-community/Janus-Pro-1B", "Janus-1.3B"):
        # Nobody asks the network about a published Janus.
        assert recommended_settings(name, LitDoLa) == {}
    assert len(asked) == 1


def test_everything_that_can_be_recommended_is_a_setting_that_is_recorded(checkpoint):
    from lit_dola import LitDoLa

    assert set(LitDoLa.recommendable) <= set(LitDoLa().hparams)
