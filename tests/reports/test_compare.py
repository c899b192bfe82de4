"""``compare``: which images are shown side by side, and notes about the others."""

import json
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
        (["x", "nothing"], "nothing: no results of a run"),
        (["x", "z"], "none of the images is in all of"),
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


def test_the_folder_of_a_run_is_not_overwritten(run, tmp_path):
    runs = [run("x", ["a"]), run("y", ["a"])]
    third = run("z", ["b"])
    for output in (*runs, third):
        before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match="is the folder of a run, whose gallery would be repl"):
            compare(runs, output)
        assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.mark.parametrize("link", ["images", "images/0", "images/0/00000_p"])
def test_copies_are_not_written_through_a_link(link, run, tmp_path):
    runs = [run("x", ["a"]), run("y", ["a"])]
    (tmp_path / "outside").mkdir()
    (tmp_path / "page" / link).parent.mkdir(parents=True)
    (tmp_path / "page" / link).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="a symbolic link; expected a folder"):
        compare(runs, tmp_path / "page", copy_images=True)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_file_among_the_runs_is_an_error(run, tmp_path):
    (tmp_path / "sheet.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"sheet\.png: not a folder; expected one that predict"):
        compare([run("x", ["a"]), tmp_path / "sheet.png"], tmp_path / "page")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 3},
        {"prompt_index": "0"},
        {"image_index": None},
        {"file_name": 7},
        {"metadata": []},
    ],
)
def test_an_edited_record_is_a_line(change, run, tmp_path):
    runs = [run("x", ["a"]), run("y", ["a"])]
    path = runs[1] / "metadata.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **change}), *rest]))
    with pytest.raises(UserError, match=r"metadata\.jsonl: line 1: not a record of a run"):
        compare(runs, tmp_path / "page")


def test_names_of_folders_need_not_be_utf_8(run, tmp_path):
    runs = [run("x\udcff", ["a"]), run("y é%", ["a"])]
    compare(runs, tmp_path / "page\udcff")
    sources = [src for src in page_of(tmp_path / "page\udcff").attributes("img", "src") if src]
    assert sources[0].startswith("../x%FF/")
    assert sources[1].startswith("../y%20%C3%A9%25/")
