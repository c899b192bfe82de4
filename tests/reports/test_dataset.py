"""Datasets: webdataset's tar files and Parquet, read by the libraries that are made for them."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from lit_dola.cli.export import export
from lit_dola.errors import UserError
from lit_dola.reports import shards
from lit_dola.runs.image_file import write_image
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import ImageRecord
from tests.support.commands import MAIN, run
from tests.support.hub import hub

datasets = pytest.importorskip("datasets")
webdataset = pytest.importorskip("webdataset")
pytestmark = pytest.mark.slow

SETTINGS = {"model_path": "some/Janus_1", "alpha": 0.1, "seed": 3, "top_k": None, "format": "png"}


def write_run(folder, entries, images=2, save_tokens=True, **settings):
    """A run with an image of one colour each, and tokens with log-probabilities."""
    folder.mkdir()
    lines = []
    for index, (prompt, metadata) in enumerate(entries):
        for image in range(images):
            record = ImageRecord(
                f"{index:05}_p/img_{image:02}.png", prompt, index, image,
                {**SETTINGS, **settings}, metadata,
            )  # fmt: skip
            (folder / record.file_name).parent.mkdir(exist_ok=True)
            tokens = np.arange(index, index + 4, dtype=np.int32)
            arrays = {
                "tokens": tokens,
                "logprob": -tokens.astype(np.float32),
                "sampled_logprob": -0.5 * tokens.astype(np.float32),
            }
            write_image(
                folder, record, Image.new("RGB", (16, 16), (20 * index, 90 * image, 7)), "png", 95,
                arrays if save_tokens else None,
            )  # fmt: skip
            lines.append(record.to_line())
    RecordLog(folder, ImageRecord).write(lines)
    return folder


ENTRIES = [("a cat", {"id": "1"}), ("猫 | <b>", {"tags": ["x", "y"]}), ("three", {})]


@pytest.fixture
def runs(tmp_path):
    other = [("another", {"file_name": "a.jpg", "id": None, "size": 2.5})]
    return [
        str(write_run(tmp_path / "one", ENTRIES)),
        str(write_run(tmp_path / "two", other, top_k=5, save_tokens=False)),
    ]


def rows_of(runs):
    return [(run, line) for run in runs for line in RecordLog(run, ImageRecord).read()]


def by_datasets(folder, tmp_path):
    """The rows that ``datasets`` finds by the card of the folder."""
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def expected(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    return [(folder, *row) for folder in folders for row in rows_of([folder])]


def test_parquet(runs, tmp_path, expected):
    export("parquet", runs, str(tmp_path / "out"), images_per_shard=3)
    names = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    assert names == [f"train-{shard:05}-of-00003.parquet" for shard in range(3)]
    rows = by_datasets(tmp_path / "out", tmp_path)
    assert isinstance(rows.features["image"], datasets.Image)
    assert len(rows) == len(expected) == 8
    for row, (folder, _, line) in zip(rows, expected):
        with Image.open(folder / line["file_name"]) as image:
            assert (np.asarray(row["image"]) == np.asarray(image)).all()
        assert row["run"] == folder.name
        for name in ("prompt", "prompt_index", "image_index", "alpha", "seed", "top_k"):
            assert row[name] == line[name]
        kept = {key: value for key, value in row["metadata"].items() if value is not None}
        assert kept == {key: value for key, value in line["metadata"].items() if value is not None}
        has_tokens = folder.name == "one"
        index = row["prompt_index"]
        assert row["tokens"] == ([*range(index, index + 4)] if has_tokens else None)
        assert (row["sampled_logprob"] is not None) is has_tokens


def test_all_shards_have_the_columns_of_all_records(runs, tmp_path):
    """Also if only the last image has one of them, or only the last run has tokens."""
    parquet = pytest.importorskip("pyarrow.parquet")

    def columns(runs):
        export("parquet", runs, str(tmp_path / "out"), images_per_shard=3)
        files = sorted((tmp_path / "out/data").iterdir())
        (found,) = {tuple(parquet.read_schema(file).names) for file in files}
        return {*found}

    assert "at_once" not in columns(runs[:1])
    log = RecordLog(tmp_path / "one", ImageRecord)
    *lines, last = log.read()
    log.write([*lines, {**last, "at_once": 4}])
    assert "at_once" in columns(runs[:1])  # as many shards as before
    assert {"tokens", "logprob"} <= columns(runs[::-1])


def test_webdataset(runs, tmp_path, expected):
    export("webdataset", runs, str(tmp_path / "out"), images_per_shard=3)
    names = [f"images-{shard:06}.tar" for shard in range(3)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == names
    urls = [str(tmp_path / "out" / name) for name in names]
    samples = [*webdataset.WebDataset(urls, shardshuffle=False)]
    assert len({sample["__key__"] for sample in samples}) == len(samples) == 8
    for sample, (folder, _, line) in zip(samples, expected):
        assert sample["png"] == (folder / line["file_name"]).read_bytes()
        assert sample["txt"].decode() == line["prompt"]
        assert json.loads(sample["json"]) == {**line, "run": folder.name}
        assert ("npz" in sample) is (folder.name == "one")
        if "npz" in sample:
            assert np.load(io.BytesIO(sample["npz"]))["tokens"][0] == line["prompt_index"]
    export("webdataset", runs[:1], str(tmp_path / "first"), images_per_shard=4)
    rows = by_datasets(tmp_path / "first", tmp_path)
    assert [row["json"]["prompt"] for row in rows] == [line["prompt"] for *_, line in expected[:6]]
    assert rows[0]["png"].size == (16, 16)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.suffix in (".tar", ".parquet", ".md")
    }


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_an_export_is_continued(form, runs, tmp_path, monkeypatch):
    """After a failure in its second shard, a lost shard, another size, and another image."""
    expected, out = tmp_path / "expected", tmp_path / "out"
    export(form, runs, str(expected), images_per_shard=3)
    written = []
    kind = shards.WebDataset if form == "webdataset" else shards.Parquet
    write = kind.write

    def failing(self, file, rows):
        written.append(len(rows))
        write(self, file, rows)
        if len(written) == 2:
            raise OSError(28, "No space left on device", "out")

    monkeypatch.setattr(kind, "write", failing)
    with pytest.raises(UserError, match=r"^output: cannot write to .*: No space left"):
        export(form, runs, str(out), images_per_shard=3)
    assert len(contents(out)) == 1
    assert not [*out.rglob("*.tmp")]
    first = contents(out)
    export(form, runs, str(out), images_per_shard=3)
    assert written == [3, 3, 3, 2]
    now = contents(out)
    assert {**now, **first} == now
    assert {k: v[0] for k, v in now.items()} == {k: v[0] for k, v in contents(expected).items()}
    export(form, runs, str(out), images_per_shard=3)
    assert contents(out) == now
    lost = next(path for path in sorted(out.rglob("*")) if path.suffix in (".tar", ".parquet"))
    lost.unlink()
    export(form, runs, str(out), images_per_shard=3)
    assert written == [3, 3, 3, 2, 3]
    export(form, runs, str(out), images_per_shard=100)
    assert written[5:] == [8]
    assert len(contents(out)) == 2
    export(form, runs[:1], str(out), images_per_shard=100)
    assert written[6:] == [6]


def test_the_card(runs, tmp_path):
    export("parquet", runs, str(tmp_path / "out"))
    path = tmp_path / "out/README.md"
    text = path.read_text()
    assert "| top\\_k | null | 5 |" in text
    assert "some/Janus_1" in text
    assert "license: other" in text
    assert "# one and two" in text
    export("parquet", runs[:1], str(tmp_path / "out"))
    assert "# one\n" in path.read_text()  # as it was written, so it is written again
    path.write_text("mine")
    export("parquet", runs, str(tmp_path / "out"))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_an_upload(form, runs, tmp_path, monkeypatch):
    """Twice, with fewer shards the second time."""
    with hub() as served:
        monkeypatch.setenv("HF_TOKEN", served.token)
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        for size in (3, 6):
            done = run(
                MAIN, "export", form, *runs, "--output=out", f"--images_per_shard={size}",
                "--push=me/cats", "--private=true", cwd=tmp_path,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            there = {name: content for name, (content, _) in contents(tmp_path / "out").items()}
            assert served.files["me/cats"] == there
        assert served.visibility["me/cats"] == "private"
        served.is_full = True
        done = run(MAIN, "export", form, *runs, "--output=new", "--push=me/new", cwd=tmp_path)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "error: push: me/new: " in done.stderr
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        done = run(MAIN, "export", form, *runs, "--output=out", "--push=me/cats", cwd=tmp_path)
        assert done.returncode == 1
        assert re.fullmatch(
            r"error: push: me/cats: .*401.*; the shards are in out; expected a repository that the"
            r" token may write to\n", done.stderr,
        )  # fmt: skip


def break_nothing(folder):
    pass


def values_of_two_types(folder):
    lines = [*RecordLog(folder, ImageRecord).read()]
    lines[-1]["metadata"] = {"id": 3}
    RecordLog(folder, ImageRecord).write(lines)


def a_running_run(folder):
    RecordLog(folder, ImageRecord).of_rank(0, "ab").touch()


def cut_off(folder):
    path = folder / "00001_p/img_01.png"
    path.write_bytes(path.read_bytes()[:60])


BAD = [
    ("parqet", break_nothing, {}, "'parqet': an unknown form; did you mean parquet?"),
    ("parquet", values_of_two_types, {}, "export parquet: values of several types under one key: "),
    ("parquet", a_running_run, {}, "export: one has not ended; expected a run that has"),
    ("webdataset", cut_off, {}, "00001_p/img_01.png: missing or cut off; expected a complete run"),
    ("parquet", cut_off, {}, "00001_p/img_01.png: missing or cut off; expected a complete run"),
    ("parquet", break_nothing, {"push": "cats"}, "push: 'cats'; expected owner/name"),
    (
        "flat",
        break_nothing,
        {"push": "me/cats"},
        "push: flat is no dataset; expected webdataset or",
    ),
    (
        "flat",
        break_nothing,
        {"runs": 2},
        "runs: flat is no dataset; expected webdataset or parquet",
    ),
    (
        "webdataset",
        break_nothing,
        {"runs": 0},
        "export: none: no images to export; expected the fold",
    ),
]


@pytest.mark.parametrize(("form", "spoil", "how", "message"), BAD)
def test_bad_input(form, spoil, how, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    spoil(write_run(tmp_path / "one", ENTRIES))
    runs = ["one"] * how.pop("runs", 1) or ["none"]
    with pytest.raises(UserError) as caught:
        export(form, runs, "out", **how)
    assert message in str(caught.value)


def test_the_form_of_a_benchmark(tmp_path):
    write_run(tmp_path / "one", ENTRIES)
    export("flat", [str(tmp_path / "one")], str(tmp_path / "flat"))
    assert len([*(tmp_path / "flat").glob("*.png")]) == 6
