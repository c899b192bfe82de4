"""Item files and runs to rank: their forms, and one line for what is wrong with an entry."""

import json

import pytest

from lit_dola.data.item_file import read_items, read_run
from lit_dola.data.requests import Failure
from lit_dola.errors import UserError
from tests.support.questions import write_pictures

ENTRIES = [
    {"image": "a.png", "labels": ["a cat", "a dog"], "id": 7},
    {"image": "b.png", "labels": ["a cat"], "answer": 0},
]


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["i.json", "i.jsonl", "lines.json"])
def test_forms(pictures, prompt_file, name):
    lines = "\n".join(map(json.dumps, ENTRIES))
    items = read_items(prompt_file(json.dumps(ENTRIES) if name == "i.json" else lines, name))
    assert [item.labels for item in items] == [("a cat", "a dog"), ("a cat",)]
    assert [item.entry.metadata for item in items] == ENTRIES
    assert [item.pictures for item in items] == [(pictures / "a.png",), (pictures / "b.png",)]


def test_labels_for_all_are_those_of_entries_without_their_own(pictures, prompt_file):
    entries = [{"image": "a.png"}, ENTRIES[1]]
    items = read_items(prompt_file(json.dumps(entries)), labels=["x", "y"])
    assert [item.labels for item in items] == [("x", "y"), ("a cat",)]


ERRORS = {
    "a string": ("a.png", "found a string; expected an object with image and labels"),
    "two images": ({"image": ["a.png", "b.png"], "labels": ["x"]}, "image is a list of 2"),
    "no labels": ({"image": "a.png"}, "no labels; expected the key labels"),
    "null labels": ({"image": "a.png", "labels": None}, "no labels; expected the key labels"),
    "a text": ({"image": "a.png", "labels": "x"}, "labels is a string; expected a list"),
    "none": ({"image": "a.png", "labels": []}, "labels is an empty list; expected at least"),
    "a number": ({"image": "a.png", "labels": ["x", 3]}, "a label is a number; expected a text"),
    "an empty label": ({"image": "a.png", "labels": [" "]}, "a label is empty; expected a text"),
    "nothing there": ({"image": "z.png", "labels": ["x"]}, "z.png: found nothing"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_file_and_the_entry(pictures, prompt_file, case):
    entry, message = ERRORS[case]
    path = prompt_file(json.dumps([ENTRIES[0], entry]))
    with pytest.raises(UserError) as caught:
        read_items(path)
    assert str(caught.value).startswith(f"{path}: entry 1: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    failures: list[Failure] = []
    assert len(read_items(path, skipped=failures)) == 1
    assert [failure.prompt_index for failure in failures] == [1]


def record(prompt_index, image_index, file):
    return {
        "file_name": file, "prompt": f"prompt {prompt_index}", "prompt_index": prompt_index,
        "image_index": image_index, "alpha": 0.1, "metadata": {},
    }  # fmt: skip


@pytest.mark.parametrize("column", ["file_name", "file"])  # file: of an earlier version
def test_the_images_of_a_run_by_prompt(column, pictures, prompt_file):
    lines = [record(3, 1, "b.png"), record(0, 0, "c.jpg"), record(3, 0, "a.png")]
    text = "\n".join(map(json.dumps, lines)).replace('"file_name"', f'"{column}"')
    path = prompt_file(text, "metadata.jsonl")
    first, second = read_run(path)
    assert (first.entry.index, first.names, first.labels) == (0, ("c.jpg",), ("prompt 0",))
    assert second.names == ("a.png", "b.png")
    assert second.pictures == (pictures / "a.png", pictures / "b.png")


def test_a_prompt_whose_image_was_deleted(pictures, prompt_file):
    lines = [record(0, 0, "a.png"), record(1, 0, "z.png")]
    path = prompt_file("\n".join(map(json.dumps, lines)), "metadata.jsonl")
    with pytest.raises(UserError, match=r"prompt 1: .*z\.png: found nothing"):
        read_run(path)
    failures: list[Failure] = []
    assert len(read_run(path, failures)) == 1
    assert (failures[0].prompt_index, failures[0].prompt) == (1, "prompt 1")
