"""A run's folder as Hugging Face's ``datasets`` reads it, and folders of earlier versions."""

import json

import numpy as np
import pytest
from PIL import Image

from lit_dola.runs.files import append_line
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import ImageRecord
from tests.support.commands import CPU, messages, records, succeed
from tests.support.questions import QUESTIONS, write_questions

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.slow


@pytest.fixture
def load(tmp_path):
    """Load a dataset of one split."""

    def load_dataset(kind, **files):
        return datasets.load_dataset(
            kind, **files, split="train", cache_dir=str(tmp_path / "cache")
        )

    return load_dataset


@pytest.fixture
def predict(main_here, tmp_path, tiny_checkpoint):
    def run(prompts, *more):
        (tmp_path / "prompt.json").write_text(json.dumps(prompts))
        return succeed(
            main_here(
                tmp_path, "predict", *CPU, f"--model.model_path={tiny_checkpoint}",
                "--model.parallel_size=2", "--writer.output_dir=out", *more,
            )
        )  # fmt: skip

    return run


def check_rows(rows, folder):
    """Every row is a record with its own picture."""
    lines = records(folder)
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines):
        with Image.open(folder / line["file_name"]) as image:
            np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(image))
        for name in ("prompt", "prompt_index", "image_index", "alpha", "seed", "versions"):
            assert row[name] == line[name]


NAMED = [{"prompt": "one", "file_name": "a.jpg", "source": {"mask_file_names": ["b.jpg"]}}, "two"]


@pytest.mark.parametrize("format", ["jpg", "png"])
def test_whatever_else_lies_in_the_folder(format, predict, load, tmp_path):
    """Grids, inspections, tokens, skipped images, and an image that a killed run left."""
    predict(
        [*NAMED, "three"], f"--writer.format={format}", "--writer.grid=true",
        "--writer.save_tokens=true", "--model.inspect=[[0, 0], [1, 1]]",
    )  # fmt: skip
    out = tmp_path / "out"
    Image.new("RGB", (8, 8)).save(out / f"00002_three/img_02.{format}")
    append_line(out / "errors.jsonl", {"prompt_index": 3, "image_index": None, "reason": "no"})
    rows = load("imagefolder", data_dir=str(out))
    check_rows(rows, out)
    assert rows[0]["metadata"]["file_name_"] == "a.jpg"
    inspected = [row["inspection"] is not None for row in rows]
    assert inspected == [True, False, False, True, False, False]


def test_prompts_that_name_a_split(predict, load, tmp_path):
    predict(["a red train", "a test of courage", "one"])
    check_rows(
        load("imagefolder", data_files=str(tmp_path / "out/metadata.jsonl")), tmp_path / "out"
    )


def test_keys_that_name_pictures_are_the_entrys_own_again(predict, tmp_path):
    predict(NAMED)
    first = next(iter(ImageRecord.read(tmp_path / "out")))
    assert first.metadata == {key: NAMED[0][key] for key in ("file_name", "source")}


def test_a_folder_of_the_former_name_is_carried_on(predict, load, tmp_path):
    out, log = tmp_path / "out", tmp_path / "out/metadata.jsonl"
    predict(["one", "two"])
    expected = log.read_bytes()
    log.write_bytes(expected.replace(b'"file_name"', b'"file"'))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/img_*")}
    assert [it.file_name for it in ImageRecord.read(out)] == [r["file"] for r in records(out)]
    done = predict(["one", "two", "three"])
    assert messages(done.stderr) == ""
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert log.read_bytes().startswith(expected)
    check_rows(load("imagefolder", data_dir=str(out)), out)
    log.write_bytes(expected.replace(b'"file_name"', b'"file"'))
    assert RecordLog(out, ImageRecord).merge() == 4
    assert log.read_bytes() == expected


def test_a_column_that_few_images_have(predict, load, tmp_path):
    """Far down, where readers have long guessed the columns from the first part of the file."""
    predict(["one"])
    log = tmp_path / "out/metadata.jsonl"
    line = records(tmp_path / "out")[0]
    many = [{**line, "prompt_index": index} for index in range(12_000)]
    many[-1] |= {"at_once": 4, "top_k": 5}
    log.write_text("\n".join(map(json.dumps, many)))
    rows = load("imagefolder", data_files=str(log))
    assert len(rows) == len(many)


def test_answers_and_ranks_are_json(predict, main_here, load, tiny_checkpoint, tmp_path):
    predict(["one", "two"])
    write_questions(tmp_path, QUESTIONS)
    for task, more in {
        "answer": ["--data.question_json=questions.jsonl", "--model.max_new_tokens=2"],
        "rank": ["--data.run=out", "--model.scorer=likelihood"],
    }.items():
        done = main_here(
            tmp_path, task, *CPU, f"--model.model_path={tiny_checkpoint}",
            f"--writer.output_dir={task}", *more,
        )  # fmt: skip
        succeed(done)
    answers = load("json", data_files=str(tmp_path / "answer/answers.jsonl"))
    assert len(answers) == len(QUESTIONS)
    assert {"answer", "pictures", "tokens", "settings"} <= {*answers.column_names}
    ranks = load("json", data_files=str(tmp_path / "rank/ranks.jsonl"))
    assert [len(row["scores"]) for row in ranks] == [2, 2]
