"""The checkpoint of this repository: the claims of its model card and the README."""

import json
import re

import pytest
import torch
import yaml
from transformers import JanusForConditionalGeneration

from recipes.shapes.head_sets import predict_tokens
from recipes.shapes.round_trip import round_trip
from tests.support.commands import ROOT

CHECKPOINT = ROOT / "checkpoints" / "shapes-janus"


def test_its_size():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 16e6
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] >= 8


@pytest.mark.slow
def test_pictures_survive_the_vq_tokenizer():
    assert round_trip(str(CHECKPOINT), 60) >= 57


@pytest.mark.slow
def test_it_draws_what_held_out_prompts_say(tmp_path, main_here):
    """A quarter of the prompts, without DoLa; the bounds leave room for chance."""
    config = yaml.safe_load((ROOT / "configs/evaluate.yaml").read_text())
    lines = (ROOT / config["data"]["prompt_json"]).read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[::4]))
    config["model"] |= {"model_path": str(CHECKPOINT), "parallel_size": 1}
    config["data"]["prompt_json"] = "prompts.jsonl"
    config["trainer"]["accelerator"] = "cpu"
    config["variants"] = {"baseline": {"dola": False}}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(config))
    done = main_here(tmp_path, "evaluate", "--config=evaluate.yaml")
    assert done.returncode == 0, done.stderr
    rates = json.loads((tmp_path / "outputs/evaluate/report.json").read_text())["rates"]
    assert rates["baseline"]["single_object"]["mean"] >= 0.6
    assert rates["baseline"]["overall"]["mean"] >= 0.3


@pytest.mark.slow
def test_head_sets_are_those_of_the_tokens_of_real_pictures():
    probabilities, tokens = predict_tokens(str(CHECKPOINT), 4)
    drawn = probabilities.gather(-1, tokens[..., None])
    assert -drawn.log().mean() < 0.5  # nats; a shift by one token would be far worse
    alone, _ = predict_tokens(str(CHECKPOINT), 1)  # without padding
    torch.testing.assert_close(alone[0], probabilities[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("document", ["README.md", "checkpoints/shapes-janus/README.md"])
def test_the_number_of_parameters_is_true(document):
    model = JanusForConditionalGeneration.from_pretrained(CHECKPOINT)
    (millions,) = re.findall(r"([\d.]+)M\s+parameters, trained", (ROOT / document).read_text())
    assert float(millions) == round(model.num_parameters() / 1e6, 1)
