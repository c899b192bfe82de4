"""``compare``: which images are shown side by side, and notes about the others."""

import re
from pathlib import Path

import pytest

from lit_dola.errors import UserError
from lit_dola.reports.compare import compare
from tests.support.pages import NASTY, Page, write_images, write_run


@pytest.fixture
def run(tmp_path):
    """Write a run with its images."""

    def write(name, prompts, images=2, **settings):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write_run(folder, prompts, images, **settings)
        write_images(folder, size=4)
        return folder

    return write


def page_of(output):
    return Page((output / "index.html").read_text("utf-8"))


def test_images_stand_beside_those_of_the_same_prompt_and_number(run, tmp_path):
    runs = [run("base", ["a", "b"]), run("dola", ["a", "b"], alpha=0.2)]
    assert compare(runs, tmp_path / "page") == []
    sources = [src for src in page_of(tmp_path / "page").attributes("img", "src") if src]
    assert sources == [
        f"../{name}/0000{i}_p/img_0{k}.png"
        for i in range(2) for k in range(2) for name in ("base", "dola")
    ]  # fmt: skip
    assert all((tmp_path / "page" / src).resolve().is_file() for src in sources)


def test_a_home_folder_is_one(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("x", ["a"])
    run("y", ["a"])
    compare([Path("~/x"), Path("~/y")], Path("~/page"))
    assert (tmp_path / "page/index.html").is_file()


def test_what_differs_is_told(run, tmp_path):
    compare([run("x", ["a"]), run("y", ["a"], alpha=0.2)], tmp_path / "page")
    table = re.search(r"<table>.*?</table>", (tmp_path / "page/index.html").read_text(), re.S)[0]
    assert [text for text in Page(table).texts if text.strip()] == [
        "setting", "x", "y", "alpha", "0.1", "0.2",
    ]  # fmt: skip


def test_runs_that_do_not_match_are_said_so(run, tmp_path):
    runs = [run("x", ["a", "b", "c"]), run("y", ["a", "other"], images=3, seed=4)]
    notes = compare(runs, tmp_path / "page")
    assert notes == [
        "1 prompts differ between x and y: prompt 1 is 'b' and 'other'; left out",
        "4 of 6 images of x are not in all runs",
        "4 of 6 images of y are not in all runs",
        "seed differs (x 3, y 4): the images are not of the same noise",
    ]
    of = page_of(tmp_path / "page")
    assert all(any(note == text for text in of.texts) for note in notes)
    assert len([src for src in of.attributes("img", "src") if src]) == 4


def test_images_that_are_not_there_are_left_out(run, tmp_path):
    runs = [run("x", ["a"]), run("y", ["a"])]
    (runs[1] / "00000_p/img_01.png").unlink()
    assert compare(runs, tmp_path / "page") == ["1 of 2 images of x are not in all runs"]


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    runs = [run("one/dola", ["a"]), run("two/dola", ["a"])]
    compare(runs, tmp_path / "page")
    assert page_of(tmp_path / "page").texts.count("one/dola") > 1


def test_copies_make_a_folder_that_can_be_moved(run, tmp_path):
    runs = [run("x", ["a"]), run("y", ["a"])]
    compare(runs, tmp_path / "page", copy_images=True)
    moved = (tmp_path / "page").rename(tmp_path / "moved")
    sources = [src for src in page_of(moved).attributes("img", "src") if src]
    assert len(sources) == 4
    assert all((moved / src).is_file() and ".." not in src for src in sources)


def test_what_a_prompt_says_is_text(run, tmp_path):
    compare([run("<b>x", NASTY, 1), run("y", NASTY, 1, alpha="</script>")], tmp_path / "page")
    of = page_of(tmp_path / "page")
    assert [text for text in of.texts if text in NASTY] == NASTY
    assert len([tag for tag, _ in of.tags if tag == "script"]) == 2
    assert "b" not in {tag for tag, _ in of.tags}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x"], "1 run; expected two or more"),
        (["x", "x"], "given twice"),
        (["x", "nothing"], "nothing: no images of a run"),
        (["x", "z"], "no image is in all of"),
    ],
)
def test_errors(run, tmp_path, names, message):
    run("x", ["a"])
    run("z", ["something else"])
    with pytest.raises(UserError, match=message):
        compare([tmp_path / name for name in names], tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_on_the_command_line(run, tmp_path, main_here):
    run("x", ["a"])
    run("y", ["a"], seed=4)
    done = main_here(tmp_path, "compare", "x", "y", "--output", "page")
    assert done.returncode == 0
    assert done.stdout == "page/index.html\n"
    assert "WARNING: seed differs" in done.stderr
    done = main_here(tmp_path, "compare", "x", "--output", "page")
    assert (done.returncode, done.stderr) == (1, "error: compare: 1 run; expected two or more\n")
