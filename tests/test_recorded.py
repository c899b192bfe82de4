"""A run of version 0.3.0 in ``tests/recorded``: generated again, continued, and compared."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.support import forked
from tests.support.commands import CPU, ROOT, ddp, messages, records, succeed

RECORDED = ROOT / "tests" / "recorded"
RUN = RECORDED / "run"
MODEL = {
    "cfg_weight": 2, "alpha": 0.02, "layer_ratio": 0.5, "mid_norm": "true", "parallel_size": 2,
    "strength": 1,
}  # fmt: skip
ARGUMENTS = [
    *CPU[:2], "--model.model_path=checkpoints/shapes-janus", "--writer.format=png",
    f"--data.prompt_json={RECORDED / 'prompts.jsonl'}",
    *(f"--model.{name}={value}" for name, value in MODEL.items()),
]  # fmt: skip
PREDICT = ["predict", *ARGUMENTS, "--model.apc=union", "--writer.save_tokens=true"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    return tmp_path


def without_versions(folder):
    return [[*{**line, "versions": None}.items()] for line in records(folder)]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def check_same(made):
    """Tokens and records are equal; pixels too, except for the last bit on another processor."""
    assert without_versions(made) == without_versions(RUN)
    assert len(records(made)) == 4
    for record in records(made):
        tokens = (
            np.load((folder / record["file_name"]).with_suffix(".npy")) for folder in (made, RUN)
        )
        np.testing.assert_array_equal(*tokens)
        assert (
            np.abs(pixels(made / record["file_name"]) - pixels(RUN / record["file_name"])).max()
            <= 1
        )


@pytest.mark.slow
def test_the_same_images_and_records(folder, main_here):
    done = main_here(folder, *PREDICT, "--writer.output_dir=out")
    assert (done.returncode, messages(done.stderr)) == (0, "")
    check_same(folder / "out")
    with Image.open(folder / "out" / records(RUN)[0]["file_name"]) as image:
        assert json.loads(image.text["parameters"])["apc"] == "union"


@pytest.mark.distributed
def test_the_same_on_two_ranks(folder):
    arguments = [argument for argument in PREDICT if "devices" not in argument]
    more = [*ddp(2), f"--writer.output_dir={folder / 'out'}"]
    for rank in range(2):
        (folder / f"rank{rank}").mkdir()
        (folder / f"rank{rank}" / "checkpoints").symlink_to(ROOT / "checkpoints")
    for done in forked.run_ranks(folder, 2, [*arguments, *more]):
        succeed(done)
    check_same(folder / "out")


@pytest.mark.slow
def test_it_is_continued(folder, main_here):
    """Nothing is generated again; images that are missing are added."""
    shutil.copytree(RUN, folder / "out")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("out/*/*")}
    succeed(main_here(folder, *PREDICT, "--writer.output_dir=out"))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("out/*/*")} == before
    check_same(folder / "out")
    succeed(main_here(folder, *PREDICT, "--writer.output_dir=out", "--model.parallel_size=3"))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(folder.glob("out/*/*.png"))) == 6


def test_another_policy_is_a_mismatch(folder, main_here):
    shutil.copytree(RUN, folder / "out")
    arguments = [*PREDICT, "--model.apc=cond", "--writer.output_dir=out"]
    done = main_here(folder, *arguments)
    assert done.returncode == 1
    assert 'holds results of another run: apc was "union", is "cond";' in done.stderr


@pytest.mark.slow
def test_the_same_report(folder, main_here, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    variants = "--variants={baseline: {dola: false}, union: {apc: union}}"
    scorer = "--scorer=recipes.shapes.scorer.ShapesScorer"
    done = main_here(folder, "evaluate", *ARGUMENTS, variants, scorer, "--writer.output_dir=out")
    assert (done.returncode, messages(done.stderr).splitlines()) == (0, [])
    report = json.loads((folder / "out/report.json").read_text())
    assert report == json.loads((RECORDED / "evaluate/report.json").read_text())


@pytest.mark.slow
def test_compare_finds_no_difference(folder, main_here):
    succeed(main_here(folder, *PREDICT, "--writer.output_dir=out"))
    done = main_here(folder, "compare", "out", str(RUN), "--output=page")
    assert (done.returncode, messages(done.stderr)) == (0, "")
    assert "<table>" not in (folder / "page/index.html").read_text()  # of settings that differ
