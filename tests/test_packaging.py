"""Packaging, versions, and other claims of the project about itself."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml

import lit_dola
from tests.support.commands import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [
    dict(line.split("==") for line in (ROOT / name).read_text().splitlines() if "==" in line)
    for name in ("constraints.txt", "constraints-compat.txt")
]


SHIPPED = ("configs", "checkpoints", "recipes/shapes/demo")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the files that a clone has."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "lit_dola", *SHIPPED, "recipes/shapes/demo.jsonl", "pyproject.toml",
         "README.md", "LICENSE", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", "--wheel-dir", folder, source,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def files_below(folder):
    return [
        path for path in (ROOT / folder).rglob("*") if path.is_file() and ".pyc" not in path.name
    ]


@pytest.mark.slow
def test_a_wheel_has_every_room_and_template_and_what_a_demo_needs(wheel):
    assert lit_dola.__version__ in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if name.startswith("lit_dola/")}
    expected = {path.relative_to(ROOT).as_posix() for path in files_below("lit_dola")}
    for folder in SHIPPED:
        names = [path.relative_to(ROOT).as_posix() for path in files_below(folder)]
        expected |= {f"lit_dola/shipped/{name}" for name in names}
    assert found == {*expected, "lit_dola/shipped/recipes/shapes/demo.jsonl"}
    assert "lit_dola/py.typed" in found
    assert "lit_dola/reports/templates/gallery.html" in found
    assert wheel.stat().st_size < 13e6  # README says 11 MB


@pytest.mark.slow
def test_a_wheel_alone_draws_ranks_and_answers(wheel, tmp_path):
    """In an empty folder, without the repository."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    code = "import lit_dola, lit_dola.cli as cli; assert 'site' in lit_dola.__file__; cli.main()"

    def lit_dola_says(*args):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *args], cwd=tmp_path / "empty", env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert re.search(r"^demo  +Eight prompts", lit_dola_says("configs"), re.M)
    few = ["--trainer.limit_predict_batches=1.0", "--trainer.accelerator=cpu"]
    lit_dola_says("predict", "--config", "demo", "--model.parallel_size=1", *few)
    assert len([*tmp_path.glob("empty/outputs/demo/*/*.png")]) == 8
    lit_dola_says("rank", "--config", "demo-rank", *few)
    assert (tmp_path / "empty/outputs/demo/best.json").is_file()
    lit_dola_says("answer", "--config", "configs/demo-answer.yaml", *few)
    assert len((tmp_path / "empty/outputs/demo-answers/answers.jsonl").open().readlines()) == 89
    assert lit_dola_says("configs", "demo").strip() == "demo.yaml"
    lit_dola_says(
        "predict",
        "--config",
        "demo.yaml",
        "--model.parallel_size=1",
        "--writer.output_dir=copied",
        *few,
    )


@pytest.mark.parametrize("name", [name for name in lit_dola.__all__ if name != "__version__"])
def test_public_names_are_exported(name):
    assert getattr(lit_dola, name).__name__ == name


def test_version(main_here, tmp_path):
    done = main_here(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"lit-dola {lit_dola.__version__}\n")
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (.*)$", changes, re.M)[1] == lit_dola.__version__


def lower_bound(package):
    for requirement in PROJECT["project"]["dependencies"]:
        if match := re.match(rf"{package}(?:\[.*\])?>=([\d.]+)", requirement):
            return match[1]
    raise AssertionError(package)


def numbers(version):
    return [int(part) for part in version.split(".")]


@pytest.mark.parametrize("package", ["torch", "lightning", "transformers", "jsonargparse"])
def test_the_oldest_supported_version_is_one_that_is_tested(package):
    bound = numbers(lower_bound(package))
    tested = [numbers(constraints[package])[: len(bound)] for constraints in CONSTRAINTS]
    assert bound == min(tested)


def test_the_newest_transformers_that_is_admitted_was_tested():
    """README names it; ``make test-newest`` says when there is a newer one."""
    (requirement,) = (
        line for line in PROJECT["project"]["dependencies"] if line.startswith("transformers")
    )
    below = numbers(requirement.split("<")[1])
    tested = re.search(r"transformers ([\d., and]+)\.$", (ROOT / "README.md").read_text(), re.M)[1]
    newest = max(numbers(version) for version in re.findall(r"[\d]+\.\d+", tested))
    assert below == [newest[0], newest[1] + 1]


def test_the_oldest_supported_python_is_the_one_that_runs_the_tests():
    assert PROJECT["project"]["requires-python"] == f">={sys.version_info[0]}.{sys.version_info[1]}"


def test_nothing_makes_the_package_unpublishable():
    """A registry refuses direct references to other sources."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    assert not [requirement for extra in extras for requirement in extra if " @ " in requirement]


def test_private_names_of_lightning_are_in_one_file():
    private = re.compile(r"\b(?:trainer|self\.trainer|strategy|connector)\.(_\w+)")
    found = {
        path.relative_to(ROOT).as_posix(): private.findall(path.read_text())
        for path in (ROOT / "lit_dola").rglob("*.py")
    }
    assert {path: names for path, names in found.items() if names} == {
        "lit_dola/callbacks/signals.py": ["_accelerator_connector"]
    }


def test_pre_commit_runs_ruff_and_mypy():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = {hook["id"] for repo in config["repos"] for hook in repo["hooks"]}
    assert hooks >= {"ruff-check", "ruff-format", "mypy"}
