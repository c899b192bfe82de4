"""Old names of settings: wherever a setting can be given, with a note, and only once."""

import os

import pytest
import yaml

from lit_dola.data.old_names import (
    notes,
    rename_arguments,
    rename_config,
    rename_environment,
    rename_settings,
)
from lit_dola.errors import UserError
from lit_dola.tasks.generate import LitDoLa

ARGUMENTS = [
    (["--model.head=union"], ["--model.apc=union"], 1),
    (["--model.head", "union"], ["--model.apc", "union"], 1),
    (["--model.head=seed"], ["--model.apc=per_branch"], 1),
    (["--model.head", "seed"], ["--model.apc", "per_branch"], 1),
    (["--model.apc=seed"], ["--model.apc=per_branch"], 1),
    (["--model.seed=3", "--model.seed", "4"], ["--model.seed=3", "--model.seed", "4"], 0),
    (["--settings={a: {}}"], ["--variants={a: {}}"], 1),
    (["--settings.a.alpha=0.2"], ["--variants.a.alpha=0.2"], 1),
    (["--layout", "dpg"], ["--export", "dpg"], 1),
    (["compare", "seed", "head", "--output=x"], ["compare", "seed", "head", "--output=x"], 0),
    (["--data.prompt_json=seed", "seed"], ["--data.prompt_json=seed", "seed"], 0),
    (["--model.layer_ratio", "-1"], ["--model.layer_ratio", "-1"], 0),
    (["--model.head"], ["--model.apc"], 1),
    (["--print_config", "--model.head", "--x=="], ["--print_config", "--model.apc", "--x=="], 1),
]


@pytest.mark.parametrize(("given", "expected", "count"), ARGUMENTS)
def test_arguments(given, expected, count):
    renamed, found = rename_arguments(given)
    assert renamed == expected
    assert len(found) == count
    assert rename_arguments(renamed) == (renamed, [])


CONFIGS = [
    ({"model": {"head": "union"}}, {"model": {"apc": "union"}}, 1),
    ({"predict": {"model": {"head": "seed"}}}, {"predict": {"model": {"apc": "per_branch"}}}, 1),
    ({"settings": {}, "layout": "dpg"}, {"variants": {}, "export": "dpg"}, 2),
    ({"model": {"seed": 3}, "data": {"head": 1}}, {"model": {"seed": 3}, "data": {"head": 1}}, 0),
    ({"model": "x.yaml"}, {"model": "x.yaml"}, 0),
]


@pytest.mark.parametrize(("given", "expected", "count"), CONFIGS)
def test_configs(given, expected, count):
    renamed, found = rename_config(given)
    assert renamed == expected
    assert len(found) == count


ENVIRONMENT = [
    ("PREDICT__MODEL__HEAD", "seed", "PREDICT__MODEL__APC", "per_branch", 1),
    ("EVALUATE__MODEL__HEAD", "union", "EVALUATE__MODEL__APC", "union", 1),
    ("EVALUATE__SETTINGS", "{}", "EVALUATE__VARIANTS", "{}", 1),
    ("EVALUATE__LAYOUT", "dpg", "EVALUATE__EXPORT", "dpg", 1),
    ("PREDICT__MODEL__SEED", "3", "PREDICT__MODEL__SEED", "3", 0),
    ("CONFIG", "seed", "CONFIG", "seed", 0),
]


@pytest.mark.parametrize(("name", "value", "new_name", "new_value", "count"), ENVIRONMENT)
def test_environment(name, value, new_name, new_value, count):
    environment = {f"LIT_DOLA_{name}": value, "HEAD": "seed"}
    found = rename_environment(environment, "LIT_DOLA")
    assert environment == {f"LIT_DOLA_{new_name}": new_value, "HEAD": "seed"}
    assert len(found) == count


def test_settings_and_records():
    assert rename_settings({"head": "seed", "seed": 1}) == {"apc": "per_branch", "seed": 1}
    assert notes({"head": "seed"}, "model.") == [
        "model.head: seed is now called model.apc: per_branch"
    ]
    assert notes({"apc": "seed"}) == ["apc: seed is now called apc: per_branch"]
    assert notes({"head": "union"}) == ["head is now called apc"]
    assert notes({"apc": "union", "seed": 1}) == []


WAYS = {
    "flag": (["--model.head=seed"], {}, None),
    "two words": (["--model.head", "seed"], {}, None),
    "file": (["--config=mine.yaml"], {}, {"model": {"head": "seed"}}),
    "string": (["--config={model: {head: seed}}"], {}, None),
    "environment": ([], {"LIT_DOLA_PREDICT__MODEL__HEAD": "seed"}, None),
}


@pytest.mark.parametrize("way", WAYS)
def test_on_the_command_line(way, main_here, tmp_path, monkeypatch):
    arguments, environment, config = WAYS[way]
    monkeypatch.setattr(os, "environ", os.environ.copy())  # which the command line changes
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if config:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    done = main_here(tmp_path, "predict", *arguments, "--print_config")
    assert done.returncode == 0, done.stderr
    model = yaml.safe_load(done.stdout)["model"]
    assert model["apc"] == "per_branch"
    assert "head" not in model
    assert "is now called" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_value_of_an_old_name_is_an_error(main_here, tmp_path):
    done = main_here(tmp_path, "predict", "--model.head=both", "--print_config")
    assert done.returncode == 2
    assert "model.apc" in done.stderr


def test_in_python(caplog):
    assert LitDoLa.checked({"head": "seed"}).scoring.apc == "per_branch"
    assert [record.getMessage() for record in caplog.records] == [
        "head: seed is now called apc: per_branch"
    ]
    with pytest.raises(UserError, match="apc"):
        LitDoLa.checked({"head": "both"})
