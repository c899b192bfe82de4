"""What the documents say: their commands are accepted, their tables complete and true."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(
    r"^ {4}python main\.py ((?:predict|evaluate) .*)$", README, flags=re.MULTILINE
)


@pytest.fixture
def printed_config(main_here):
    def of(command):
        done = main_here(ROOT, *shlex.split(command), "--print_config")
        assert done.returncode == 0, done.stderr
        return yaml.safe_load(done.stdout)

    return of


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_accepted(command, printed_config):
    assert printed_config(command)["model"]


def test_there_are_commands():
    assert len(COMMANDS) >= 4


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^ {4}make (\S+)$", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_table_of_settings_is_complete_and_its_defaults_are_true(printed_config):
    table = dict(re.findall(r"^\| `((?:model|data|writer)\.\w+)` \| `(.+?)` \|", README, re.M))
    config = printed_config("predict")
    settings = {
        f"{group}.{name}": value
        for group in ("model", "data", "writer")
        for name, value in config[group].items()
    }
    assert {name: yaml.safe_load(default) for name, default in table.items()} == settings


def test_every_flag_of_the_old_script_has_a_setting(printed_config):
    config = printed_config("predict")
    rows = re.findall(r"^\| `--\w+` \| `(\w+)\.(\w+)", README, re.M)
    assert len(rows) == 8
    assert all(name in config[group] for group, name in rows)


def test_files_that_are_named_are_there():
    for path in re.findall(
        r"`((?:lit_dola|configs|tests|docs)/[\w./-]+)`|\]\((\w[\w/.]+)\)", README
    ):
        assert (ROOT / (path[0] or path[1])).exists(), path
