"""Packaging, versions, and other claims of the project about itself."""

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


@pytest.mark.slow
def test_a_wheel_has_every_room_and_template(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "lit_dola", source / "lit_dola", ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", "--wheel-dir", tmp_path, source,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert lit_dola.__version__ in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("lit_dola/")}
    files = [path for path in (ROOT / "lit_dola").rglob("*") if path.is_file()]
    expected = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert shipped == expected
    assert "lit_dola/py.typed" in shipped
    assert "lit_dola/reports/templates/gallery.html" in shipped


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
