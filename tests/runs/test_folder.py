"""Safe names, complete files, and records that are never lost."""

import errno
import json
import os
import threading
import unicodedata
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_dola.data.requests import Failure
from lit_dola.errors import UserError
from lit_dola.runs.files import append_line, make_folder, safe_name, write_atomically
from lit_dola.runs.folder import (
    RunFiles,
    delete_half_written,
    delete_results,
    image_files,
    image_path,
)
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import ImageRecord
from lit_dola.runs.resume import differences


def test_names_are_those_of_the_old_script():
    assert image_path(7, "a cat", 2).as_posix() == "00007_a_cat/img_02"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a red  apple", "a_red_apple"),
        ("a/b\\c:d*e?f\"g<h>i|j", "a_b_c_d_e_f_g_h_i_j"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("the end...", "the_end"),
        ("nul\0 tab\t line\n", "nul_tab_line"),
        ("猫が海を見る", "猫が海を見る"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("left\u202eright\u061cx", "left_right_x"),
        ("line\u2028separator", "line_separator"),
        ("CON", "CON"),
        ("...", ""),
    ],
)  # fmt: skip
def test_safe_name(text, name):
    assert safe_name(text) == name


def test_a_long_prompt_is_cut_between_characters():
    assert safe_name("é" * 100, max_bytes=81) == "é" * 40
    assert safe_name("a" * 10_000) == "a" * 80


def test_a_prompt_without_a_safe_character_still_has_a_folder():
    assert image_path(7, "???", 0).as_posix() == "00007/img_00"


awkward = st.sampled_from(
    ["..", "/", "/etc/passwd", "C:\\x", "\\\\host\\x", "~", "\0", "CON", "nul.txt", "a.", "A"]
) | st.sampled_from(["\u202e", "🙂", "e\u0301", "x" * 10_000])
prompts = st.lists(
    st.text(min_size=1) | awkward | st.builds("".join, st.lists(awkward)), min_size=1, max_size=6
)


@given(prompts)
def test_any_prompts_have_safe_folders_of_their_own(texts):
    """In the run's folder, on Linux, macOS (case-insensitive, other normal form) and Windows."""
    folders = []
    for index, text in enumerate([*texts, *texts, texts[0].swapcase()]):
        path = image_path(index, text, 0)
        windows = PureWindowsPath(str(path))
        assert len(path.parts) == len(windows.parts) == 2
        assert not path.is_absolute()
        assert not windows.anchor
        assert not windows.is_reserved()
        folder = path.parts[0]
        assert folder.startswith(f"{index:05}")
        assert len(folder.encode()) < 100
        assert not set(folder) & set('<>:"/\\|?*\0\n\r\t')
        assert folder[-1] not in ". "
        folders.append(unicodedata.normalize("NFD", folder).casefold())
    assert len(set(folders)) == len(folders)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    def half():
        yield b"half"
        raise OSError("disk full")

    path = tmp_path / "img.jpg"
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half())
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half())
    assert path.read_bytes() == b"old"


def test_the_name_appears_only_when_the_file_is_whole(tmp_path):
    path = tmp_path / "img.jpg"
    write_atomically(path, (b"torn" if path.exists() else b"x" for _ in range(2)))
    assert path.read_bytes() == b"xx"


def test_a_rename_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "img.jpg"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no rename")))
    with pytest.raises(OSError, match="no rename"):
        write_atomically(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["img.jpg"]


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda _file: calls.append("fsync"))
    monkeypatch.setattr(Path, "replace", lambda *_: calls.append("replace"))
    write_atomically(tmp_path / "img.jpg", [b"x"])
    assert calls == ["fsync", "replace"]


def test_nothing_is_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("img_00.jpg", "metadata.0.jsonl", ".img_01.jpg.4711.tmp"):
        (folder / name).symlink_to(outside / "file")
    (folder / "00000_a").symlink_to(outside)

    write_atomically(folder / "img_00.jpg", [b"new"])
    assert not (folder / "img_00.jpg").is_symlink()
    with pytest.raises(OSError, match="symbolic links"):
        append_line(folder / "metadata.0.jsonl", {})
    with pytest.raises(OSError, match="a symbolic link; expected a folder"):
        make_folder(folder / "00000_a")
    with pytest.raises(UserError, match="00000_a: a symbolic link; expected a folder"):
        image_files(folder)
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "precious"


def record(prompt_index, image_index, **more):
    place = {"prompt_index": prompt_index, "image_index": image_index}
    return {"file_name": "a.jpg", "prompt": "a", **place, "metadata": {}, "reason": "b", **more}


def lines_in(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_lines_of_many_threads_are_whole(tmp_path):
    def append(first):
        for index in range(50):
            append_line(tmp_path / "metadata.0.jsonl", record(first, index, text="é" * 3000))

    threads = [threading.Thread(target=append, args=[first]) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines_in(tmp_path / "metadata.0.jsonl")) == 400


def test_a_line_on_a_full_disk_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "metadata.0.jsonl"
    append_line(path, record(0, 0))
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:9]))
    with pytest.raises(OSError, match="No space left") as caught:
        append_line(path, record(0, 1))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    monkeypatch.undo()
    append_line(path, record(0, 2))
    assert lines_in(path) == [record(0, 0), record(0, 2)]


def test_ranks_are_merged_in_order_a_line_an_image(tmp_path):
    lines = RecordLog(tmp_path, ImageRecord)
    for rank, made in [(0, [(2, 0), (0, 1)]), (11, [(1, 0), (3, 0)]), (2, [(0, 0), (2, 0)])]:
        for key in made:
            append_line(lines.of_rank(rank, "ab12"), record(*key))
    assert lines.merge() == 5
    expected = [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)]
    assert lines_in(lines.path) == [record(*key) for key in expected]
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.jsonl"]
    append_line(lines.of_rank(1, "ab12"), record(1, 1))
    assert lines.merge(keep=lambda line: line if line["prompt_index"] == 1 else None) == 2
    assert lines_in(lines.path) == [record(1, 0), record(1, 1)]
    assert lines.merge(keep=lambda line: None) == 0
    assert list(tmp_path.iterdir()) == []
    failures = RecordLog(tmp_path, Failure)
    for image in (2, None):  # None: about the whole prompt
        append_line(failures.of_rank(0, "ab12"), record(0, image))
    assert failures.merge() == 2
    assert lines_in(failures.path) == [record(0, None), record(0, 2)]


def test_a_merged_log_that_stays_as_it_is_is_not_written(tmp_path):
    lines = RecordLog(tmp_path, ImageRecord)
    for key in [(0, 0), (0, 1), (1, 0)]:
        append_line(lines.of_rank(0, "ab12"), record(*key))
    lines.merge()
    inode = lines.path.stat().st_ino
    assert lines.merge() == 3
    assert lines.path.stat().st_ino == inode
    for change in ("drop", "change", "append", "order", "torn", "twice"):
        before = lines.path.stat().st_ino
        kept = lambda line: line  # noqa: E731
        if change == "drop":
            kept = lambda line: line if line["image_index"] == 0 else None  # noqa: E731
        elif change == "change":
            kept = lambda line: {**line, "metadata": {"new": 1}}  # noqa: E731
        elif change == "append":
            append_line(lines.of_rank(0, "cd34"), record(0, 1))
        else:
            content = lines.path.read_bytes().splitlines(keepends=True)
            more = {"order": content[::-1], "torn": [*content, b"{"], "twice": content * 2}
            lines.path.write_bytes(b"".join(more[change]))
        count = lines.merge(keep=kept)
        assert lines.path.stat().st_ino != before, change
        found = [(line["prompt_index"], line["image_index"]) for line in lines_in(lines.path)]
        assert found == sorted(set(found))
        assert len(found) == count


@given(
    st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 3)))),
    st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 3)))),
    st.sets(st.integers(0, 4)),
    st.sets(st.integers(0, 4)),
)
def test_a_merge_is_what_a_dictionary_would_be(first, second, dropped, changed):
    def keep(line):
        if line["prompt_index"] in dropped:
            return None
        return {**line, "new": True} if line["prompt_index"] in changed else line

    with TemporaryDirectory() as folder:
        log = RecordLog(Path(folder), Failure)
        expected = {}
        for part, keys in enumerate((first, second)):
            for place, key in enumerate(keys):
                line = {
                    "prompt": f"{part}.{place}",
                    "prompt_index": key[0],
                    "image_index": key[1],
                    "reason": "b",
                }
                append_line(log.of_rank(part, "ab12"), line)
                kept = keep(line)
                expected[key[0], -1 if key[1] is None else key[1]] = kept
        found = {key: line for key, line in expected.items() if line is not None}
        assert log.merge(keep) == len(found)
        merged = lines_in(log.path) if log.path.exists() else []
        assert merged == [found[key] for key in sorted(found)]


def test_files_are_listed_by_prompt(tmp_path):
    folder = tmp_path / "00001_a"
    folder.mkdir()
    (folder / "img_00.png").write_bytes(b"x")
    (folder / "img_01.png").symlink_to(folder / "img_00.png")
    (folder / "notes.txt").write_bytes(b"x")
    os.utime(folder / "img_00.png", (1000, 1000))
    files = RunFiles(tmp_path)
    assert files.modified("00001_a/img_00.png") == 1000
    for other in ("00001_a/img_01.png", "00001_a/notes.txt", "00001_a/img_02.png", "x", "../x/y"):
        assert files.modified(other) is None


def test_a_torn_line_is_left_out(tmp_path):
    lines = RecordLog(tmp_path, ImageRecord)
    append_line(lines.of_rank(0, "ab12"), record(0, 0))
    with lines.of_rank(0, "ab12").open("ab") as file:
        file.write(json.dumps(record(0, 1)).encode()[:-7])
    with lines.of_rank(1, "ab12").open("ab") as file:
        file.write(b"\0" * 30 + b"\xff\n" + json.dumps(record(0, 2)).encode())
    lines.merge()
    assert lines_in(lines.path) == [record(0, 0), record(0, 2)]
    assert lines.path.read_bytes().endswith(b"\n")


def test_a_merge_that_fails_loses_no_line(tmp_path, monkeypatch):
    lines = RecordLog(tmp_path, ImageRecord)
    append_line(lines.of_rank(0, "ab12"), record(0, 0))
    lines.merge()
    append_line(lines.of_rank(1, "ab12"), record(0, 1))
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no rename")))
        with pytest.raises(OSError, match="no rename"):
            lines.merge()
    assert lines.merge() == 2


def test_lines_of_something_else_are_an_error_and_stay(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "0001.png"}\n')
    with pytest.raises(
        UserError, match=r"metadata\.jsonl: line 1: not a record of a run; expected"
    ):
        RecordLog(tmp_path, ImageRecord).merge()
    assert path.read_text() == '{"file_name": "0001.png"}\n'


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"x")


def test_image_files_are_ours_and_what_is_half_written_is_not(tmp_path):
    ours = {"00000_a/img_00.jpg", "00000_a/img_00.npy", "123456_b/img_100.webp", "00003/img_01.png"}
    others = ["notes.txt", "00000_a/notes.txt", "extra/img_00.jpg", "00000_a/deep/img_00.jpg"]
    torn = [".metadata.jsonl.7.tmp", "00000_a/.img_01.jpg.4711.tmp"]
    make(tmp_path, *ours, *others, *torn)
    assert image_files(tmp_path) == ours
    now = (tmp_path / torn[0]).stat().st_mtime
    os.utime(tmp_path / torn[1], (now - 9, now - 9))
    delete_half_written(tmp_path, before=now - 10)  # nothing is that old
    assert all((tmp_path / name).exists() for name in [*ours, *others, *torn])
    delete_half_written(tmp_path, before=now)
    assert [(tmp_path / name).exists() for name in torn] == [True, False]
    delete_half_written(tmp_path, before=now + 1)
    assert not any((tmp_path / name).exists() for name in torn)
    assert all((tmp_path / name).exists() for name in [*ours, *others])


def test_delete_results_leaves_what_is_not_ours(tmp_path):
    make(tmp_path, "00000_a/img_00.jpg", "00000_a/notes.txt", "00001_b/img_00.jpg", "notes.txt")
    append_line(tmp_path / "metadata.0.jsonl", record(0, 0))
    append_line(tmp_path / "errors.jsonl", record(0, 0))
    delete_results(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"00000_a", "00000_a/notes.txt", "notes.txt"}


def test_differences_name_each_setting_and_the_prompt():
    lines = [record(0, 0, alpha=0.1, seed=0, layer=None), record(1, 0, alpha=0.1, seed=0)]
    earlier = [ImageRecord.from_line(line) for line in lines]
    same = {"alpha": 0.1, "seed": 0, "new": "setting"}
    assert differences(ImageRecord, earlier, same, {0: "a"}) == []  # the prompt file may be shorter
    assert differences(ImageRecord, earlier, same, {0: "a", 1: "a", 2: "b"}) == []  # or longer
    assert differences(ImageRecord, earlier, {**same, "alpha": 0.2, "layer": 6}, {0: "a"}) == [
        "alpha was 0.1, is 0.2",
        "layer was null, is 6",
    ]
    assert differences(ImageRecord, earlier, same, {0: "a", 1: "b"}) == ["prompt 1 was 'a', is 'b'"]
