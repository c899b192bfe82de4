"""The command and the configuration that make images again."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from lit_dola.cli.tasks import ParsedTask
from lit_dola.reports.reproduce import command_for, config_for
from lit_dola.runs.records import ImageRecord
from tests.support.pages import NASTY

SETTINGS = {
    "model_path": "my models/janus", "dola": True, "alpha": 0.1, "top_k": None, "seed": 3,
    "entropy_temperature": [2.5, 3, 0.6], "roles": "template", "checkpoint": "sha256:1",
    "precision": "32-true", "format": "png", "quality": None, "versions": {"torch": "2"},
}  # fmt: skip


def recorded(prompt, **settings):
    return [ImageRecord("", prompt, 7, image, {**SETTINGS, **settings}, {}) for image in (0, 2)]


ODD = [
    "1e3",
    "null",
    "~",
    "# blurry",
    "a\x85b",
    "a\x7fb",
    "a\ufffeb",
    "12:30",
    "[x",
    "\u2028",
    "🦊",
]
"""Texts that YAML reads as something else."""


@pytest.fixture(scope="module")
def parser():
    return ParsedTask("predict").parser()


@pytest.mark.parametrize("text", ODD)
def test_texts_are_read_as_they_were(text, parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for prompt, settings in (("a", {"negative_prompt": text}), (text, {})):
        words = shlex.split(command_for(recorded(prompt, **settings)))[2:]
        config = config_for(recorded(prompt, **settings))
        Path("again.yaml").write_text(config, encoding="utf-8")
        for args in (words, ["--config=again.yaml"]):
            found = parser.parse_args(args)
            assert {**found.data.prompts} in ({7: prompt}, {"7": prompt})
            assert found.model.negative_prompt == settings.get("negative_prompt")


@pytest.mark.parametrize(
    "prompt", [*NASTY, *ODD, "a 'quoted' \"prompt\"", "two\nlines", "$HOME `ls` !1"]
)
def test_a_shell_and_yaml_read_what_was_meant(prompt):
    words = shlex.split(command_for(recorded(prompt)))
    assert words[:2] == ["lit-dola", "predict"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert json.loads(given["--data.prompts"]) == {"7": prompt}
    assert yaml.safe_load(given["--data.prompts"]) == {"7": prompt}
    assert given["--data.images"] == "[0, 2]"
    assert given["--model.model_path"] == "my models/janus"
    assert given["--model.top_k"] == "null"
    assert given["--model.entropy_temperature"] == "[2.5, 3, 0.6]"
    assert given["--trainer.precision"] == "32-true"
    assert given["--writer.output_dir"] == "outputs/again"
    assert not {"--model.roles", "--writer.quality", "--model.checkpoint"} & given.keys()
    config = yaml.safe_load(config_for(recorded(prompt), "elsewhere"))
    assert config["data"] == {"prompts": {7: prompt}, "images": [0, 2]}
    assert config["model"]["top_k"] is None
    assert config["writer"] == {"format": "png", "output_dir": "elsewhere"}
    assert {name for group in config.values() for name in group} == {
        name.rpartition(".")[2] for name in given
    }


def test_what_is_not_a_default_is_given():
    words = shlex.split(command_for(recorded("a", roles="base", quality=80, format="jpg")))
    assert words[words.index("--model.roles") + 1] == "base"
    assert words[words.index("--writer.quality") + 1] == "80"
