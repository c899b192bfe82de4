"""The documentation: its commands work or are accepted, and its links lead somewhere."""

import json
import re
import shlex
import subprocess
import tomllib
from importlib import import_module

import numpy as np
import pytest
import yaml
from PIL import Image

from docs.make_reference import main as make_reference
from docs.make_schema import task_of
from recipes.shapes.scorer import ShapesScorer, find_objects
from tests.support import forked
from tests.support.commands import ROOT, records, succeed

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
README, TUTORIAL, HOW_TO, REFERENCE = (
    PAGES[name] for name in ("README.md", "docs/tutorial.md", "docs/how-to.md", "docs/reference.md")
)
COMMANDS = sorted(
    {
        command
        for page in PAGES.values()
        for command in re.findall(
            r"^ {4}python main\.py ((?:predict|evaluate|compare|play|serve|verify|lens) .*)$",
            page,
            flags=re.MULTILINE,
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


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_accepted(command, printed_config):
    assert printed_config(command)


def test_there_are_commands():
    assert len(COMMANDS) >= 12
    assert len(TUTORIAL_COMMANDS) >= 8


def check_demo(folder):
    """Run the commands of ``make demo``."""
    predict = ["predict", "--config", "configs/demo.yaml"]
    done = succeed(forked.run(folder, predict))
    assert done.stdout == ""  # not a terminal: no progress, no noise
    recommended, first, last = done.stderr.splitlines()
    assert recommended.startswith("checkpoints/shapes-janus recommends cfg_weight 2.0, alpha")
    assert first == (
        "checkpoints/shapes-janus on cpu, float32: 32 images to generate; writing to outputs/demo"
    )
    assert re.fullmatch(
        r"32 images in \d\d:\d\d, [\d.]+ images/s; open outputs/demo/index\.html", last
    )
    again = succeed(forked.run(folder, predict)).stderr.splitlines()
    assert again == [
        recommended, "nothing to do: all 32 images already exist; open outputs/demo/index.html"
    ]  # fmt: skip
    images = sorted((folder / "outputs/demo").glob("*/*.png"))
    entries = [json.loads(line) for line in (ROOT / "recipes/shapes/demo.jsonl").open()]
    assert len(entries) == 8
    assert len(images) == 4 * len(entries)
    assert images[0].parent.name == "00000_an_image_of_a_circle"
    assert [path.name for path in images[:2]] == ["img_00.png", "img_01.png"]
    made = records(folder / "outputs/demo")
    assert [record["prompt"] for record in made[::4]] == [entry["prompt"] for entry in entries]
    assert all(record["dola"] for record in made)
    right = []
    for record in made:
        with Image.open(folder / "outputs/demo" / record["file_name"]) as image:
            assert image.size == (48, 48)
            right.append(ShapesScorer()(image, record["metadata"]))
    assert np.mean(right) > 0.3  # it draws what the prompts say
    succeed(forked.run(folder, ["rank", "--config", "configs/demo-rank.yaml"]))
    best = json.loads((folder / "outputs/demo/best.json").read_text())
    assert len(best["prompts"]) == 8
    succeed(forked.run(folder, ["answer", "--config", "configs/demo-answer.yaml"]))
    lines = (folder / "outputs/demo-answers/answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert len(answers) == 89
    assert np.mean([line["answer"] == line["label"] for line in answers]) > 0.5  # it sees
    assert (folder / "outputs/demo-answers/index.html").stat().st_size > 1000


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
    for name in ("configs", "recipes", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    named = set(re.findall(r"`(outputs/[\w./-]+)`", TUTORIAL))
    assert len(named) >= 6
    for command in TUTORIAL_COMMANDS:
        if command.startswith("python main.py"):
            args = shlex.split(command)[2:]
            if args[0] == "evaluate":
                args.append("--model.parallel_size=1")  # half as many images, for the time it takes
            done = forked.run(tmp_path, args)
            assert done.returncode == 0, (command, done.stderr)
        elif command == "make demo":
            check_demo(tmp_path)
        elif not command.startswith("source "):
            subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert [path for path in named if not (tmp_path / path).exists()] == []
    report = (tmp_path / "outputs/measure/report.md").read_text()
    assert "`dola`" in report
    assert "`baseline`" in report


@pytest.mark.parametrize("page", ["README.md", "docs/how-to.md"])
@pytest.mark.slow
def test_the_lines_of_python_draw_what_they_say(page, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGES[page], re.S)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    drawn = [
        [(found.shape, found.color) for found in find_objects(image)]
        for image in names["result"].images
    ]
    assert drawn == [[("circle", "red")]] * 2 + [[("square", "blue")] * 2] * 2
    assert (tmp_path / "circle.png").stat().st_size > 100
    assert capsys.readouterr().out == "torch.Size([4, 144])\n"


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES.values():
        for target in re.findall(r"^ {4}make (\S+)$", page, flags=re.MULTILINE):
            assert f"\n{target}:" in makefile


def test_the_script_of_the_screenshots_can_be_imported():
    assert callable(import_module("docs.make_pictures").main)


def test_the_reference_is_the_one_of_this_code():
    """Otherwise run: python -m docs.make_reference > docs/reference.md."""
    assert make_reference() + "\n" == REFERENCE


@pytest.mark.parametrize("task", ["predict", "answer", "rank", "lens"])
def test_the_reference_has_every_setting_and_its_default(printed_config, task):
    parts = re.split("### `model` of `(?:answer|rank|lens)`", PAGES["docs/reference.md"])
    part = parts[["predict", "answer", "rank", "lens"].index(task)]
    rows = re.findall(r"^\| `((?:\w+)\.\w+)` \| `(.+?)` \| (.+) \|$", part, re.M)
    config = printed_config(task)
    settings = {
        f"{group}.{name}": value
        for group in task_of(task).groups
        for name, value in config[group].items()
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
    """The anchor that GitHub makes from a heading."""
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


ARCHITECTURE = PAGES["docs/architecture.md"]


def modules():
    """Every module of the package, by its relative path."""
    package = ROOT / "lit_dola"
    paths = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    return {path for path in paths if not path.endswith("/__init__.py")}


def described():
    """The modules that the tables of rooms describe."""
    rooms = ARCHITECTURE.split("## Rooms")[1].split("Three objects")[0]
    found = set()
    for table in re.findall(r"(?:^\|.*\n)+", rooms, re.M):
        room = re.match(r"\| `(\w+/)` \|", table)
        for row in table.splitlines()[2:]:
            first = row.split("|")[1]
            found |= {
                (room[1] if room else "") + name for name in re.findall(r"`(\w+\.py)`", first)
            }
    return found


def test_the_architecture_describes_every_module():
    assert described() == modules()


def test_the_architecture_shows_the_layers_that_are_enforced():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = (
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    shown = [layer.replace("lit_dola.", "") for layer in layers]
    assert "\n".join(f"    {layer}" for layer in shown) in ARCHITECTURE


def test_changes_touch_files_that_exist():
    """Those that are marked are made by test_architecture.py."""
    table = ARCHITECTURE.split("## Ten changes, and")[1]
    changes, change = {}, ""
    for row in table.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 3 and cells[0] not in ("change", "---"):
            change = cells[0] or change
            changes.setdefault(change, []).extend(re.findall(r"`([\w/]+(?:\.py|/))`", cells[1]))
    assert len(changes) == 10
    for files in changes.values():
        assert all((ROOT / "lit_dola" / file).exists() for file in files)


@pytest.mark.parametrize("page", ["README.md", "configs/dola-gentle.yaml"])
def test_figures_of_the_study_are_those_of_its_page(page):
    """Rates and intervals that other pages quote stand in the study's."""
    text = (ROOT / page).read_text()
    if page == "README.md":
        text = text[text.index("## Who gains") : text.index("## The real model")]
    quoted = set(re.findall(r"(?<![\d.-])\d+\.\d(?!\d|\.\d)", text)) - {"0.9"}
    assert len(quoted) >= 6
    assert [figure for figure in quoted if figure not in PAGES["docs/study.md"]] == []
