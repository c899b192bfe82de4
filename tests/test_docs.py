"""What the documents say: their commands work or are accepted, their links lead somewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from lit_dola.schema import GROUPS

from docs.make_reference import main as make_reference
from tests import forked

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
README, TUTORIAL, HOW_TO, REFERENCE = (
    PAGES[name] for name in ("README.md", "docs/tutorial.md", "docs/how-to.md", "docs/reference.md")
)
COMMANDS = sorted(
    {
        command
        for page in PAGES.values()
        for command in re.findall(
            r"^ {4}python main\.py ((?:predict|evaluate|compare) .*)$", page, flags=re.MULTILINE
        )
    }
)
TUTORIAL_COMMANDS = re.findall(r"^ {4}(\S.*)$", TUTORIAL, flags=re.MULTILINE)


@pytest.fixture
def printed_config(main_here):
    def of(command):
        done = main_here(ROOT, *shlex.split(command), "--print_config")
        assert done.returncode == 0, done.stderr
        return yaml.safe_load(done.stdout)

    return of


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_accepted(command, printed_config):
    assert printed_config(command)


def test_there_are_commands():
    assert len(COMMANDS) >= 12
    assert len(TUTORIAL_COMMANDS) >= 8


def test_the_tutorial_does_what_it_says(tmp_path):
    for name in ("configs", "recipes", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    named = set(re.findall(r"`(outputs/[\w./-]+)`", TUTORIAL))
    assert len(named) >= 6
    for command in TUTORIAL_COMMANDS:
        if command.startswith("python main.py"):
            done = forked.run(tmp_path, shlex.split(command)[2:])
            assert done.returncode == 0, (command, done.stderr)
        elif command == "make demo":  # whose command is the first of the next
            done = forked.run(tmp_path, ["predict", "--config", "configs/demo.yaml"])
            assert done.returncode == 0, done.stderr
        elif not command.startswith("source "):
            subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert [path for path in named if not (tmp_path / path).exists()] == []
    report = (tmp_path / "outputs/measure/report.md").read_text()
    assert "`dola`" in report
    assert "`baseline`" in report


@pytest.mark.parametrize("page", ["README.md", "docs/how-to.md"])
def test_the_lines_of_python_work(page, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGES[page], re.S)
    assert len([line for line in code.splitlines() if line]) == 5
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert (tmp_path / "circle.png").stat().st_size > 100
    assert capsys.readouterr().out == "torch.Size([4, 144])\n"


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES.values():
        for target in re.findall(r"^ {4}make (\S+)$", page, flags=re.MULTILINE):
            assert f"\n{target}:" in makefile


def test_the_reference_is_the_one_of_this_code():
    """Else: python -m docs.make_reference > docs/reference.md."""
    assert make_reference() + "\n" == REFERENCE


def test_the_reference_has_every_setting_and_its_default(printed_config):
    rows = re.findall(
        r"^\| `((?:\w+)\.\w+)` \| `(.+?)` \| (.+) \|$", PAGES["docs/reference.md"], re.M
    )
    config = printed_config("predict")
    settings = {
        f"{group}.{name}": value for group in GROUPS for name, value in config[group].items()
    }
    assert {name: yaml.safe_load(default) for name, default, _ in rows} == settings
    assert all(len(text) > 10 for *_, text in rows)


def test_every_flag_of_the_old_script_has_a_setting(printed_config):
    config = printed_config("predict")
    rows = re.findall(r"^\| `--\w+` \| `(\w+)\.(\w+)", HOW_TO, re.M)
    assert len(rows) == 8
    assert all(name in config[group] for group, name in rows)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    for path in re.findall(r"`((?:lit_dola|configs|tests|docs|recipes)/[\w./-]+)`", PAGES[page]):
        assert (ROOT / path).exists(), path


def anchor(title):
    """The address that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
            assert heading in map(anchor, headings), target


def test_every_module_has_its_place_in_the_readme():
    tree = README.split("## Where things are")[1]
    modules = {path.name for path in (ROOT / "lit_dola").glob("*.py")} - {"__init__.py"}
    assert modules == set(re.findall(r"`(\w+\.py)`", tree)) - {"main.py"}
