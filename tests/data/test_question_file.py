"""Question files: their forms, and one line for whatever is wrong with an entry or its picture."""

import json

import pytest
from PIL import Image

from lit_dola.data.prompt_file import read_prompts
from lit_dola.data.question_file import read_questions
from lit_dola.data.requests import Failure
from lit_dola.errors import UserError
from tests.support.questions import write_pictures

ENTRIES = [
    {"question_id": 1, "image": "a.png", "text": "Is there a cat?", "label": "no"},
    {"question_id": 2, "image": "b.png", "text": " Is there a dog? ", "label": "yes"},
]
LIST = json.dumps(ENTRIES, indent=1)
LINES = "\n".join(map(json.dumps, ENTRIES)) + "\n"


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "name"), [(LIST, "q.json"), (LINES, "q.jsonl"), (LINES, "q.json")]
)
def test_forms(pictures, prompt_file, content, name):
    questions = read_questions(prompt_file(content, name))
    assert [question.entry.text for question in questions] == [
        "Is there a cat?",
        "Is there a dog?",
    ]
    assert [question.entry.index for question in questions] == [0, 1]
    assert [question.entry.metadata for question in questions] == ENTRIES
    assert [question.pictures for question in questions] == [
        (pictures / "a.png",), (pictures / "b.png",)
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["question", "text", "prompt"])
def test_keys_of_the_question(pictures, prompt_file, key):
    (question,) = read_questions(prompt_file(json.dumps([{"image": "a.png", key: "Why?"}])))
    assert question.entry.text == "Why?"


def test_pictures_lie_in_a_folder_of_their_own(pictures, prompt_file):
    entry = {"image": ["../b.png", "c.jpg"], "question": "Which?"}
    folder = pictures / "images"
    folder.mkdir()
    (pictures / "c.jpg").rename(folder / "c.jpg")
    (question,) = read_questions(prompt_file(json.dumps([entry])), folder)
    assert question.pictures == (folder / "../b.png", folder / "c.jpg")
    assert question.names == ("../b.png", "c.jpg")


def test_json_lines_in_a_json_file_are_prompts_too(prompt_file):
    prompts = read_prompts(prompt_file('{"prompt": "a"}\n\n{"prompt": "b", "id": 3}\n'))
    assert [(prompt.text, prompt.metadata) for prompt in prompts] == [("a", {}), ("b", {"id": 3})]


ERRORS = {
    "a string": (["What?"], "found a string; expected an object with image and question"),
    "no image": ([{"question": "What?"}], "no image among 'question'; expected the key image"),
    "no question": ([{"image": "a.png"}], "no question among 'image'; expected one of the keys"),
    "a null question": ([{"image": "a.png", "text": None}], "text is null; expected a string"),
    "an empty question": ([{"image": "a.png", "text": " "}], "text is empty; expected a text"),
    "a null image": ([{"image": None, "text": "x"}], "image is null; expected a path"),
    "an empty image": ([{"image": "", "text": "x"}], "image is empty; expected a path"),
    "no images": ([{"image": [], "text": "x"}], "image is an empty list; expected at least one"),
    "a number": ([{"image": ["a.png", 3], "text": "x"}], "image is a number; expected a path"),
    "nothing there": ([{"image": "z.png", "text": "x"}], "z.png: found nothing; expected an image"),
    "a folder": ([{"image": ".", "text": "x"}], "found a folder; expected an image file"),
    "HTML": ([{"image": "page.png", "text": "x"}], "page.png: not an image; expected JPEG, PNG"),
    "no bytes": ([{"image": "empty.png", "text": "x"}], "empty.png: not an image; expected"),
    "SVG": ([{"image": "drawing.svg", "text": "x"}], "drawing.svg: not an image; expected"),
    "half a surrogate pair": (r'[{"image": "a.png", "text": "\ud83d"}]', "half a surrogate pair"),
}


@pytest.fixture
def hostile(pictures):
    (pictures / "page.png").write_text("<!doctype html><p>not found")
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_file_and_the_entry(hostile, prompt_file, case):
    entries, message = ERRORS[case]
    content = entries if isinstance(entries, str) else json.dumps(entries)
    path = prompt_file(f"[{json.dumps(ENTRIES[0])}, {content.strip()[1:]}", "q.json")
    with pytest.raises(UserError) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}: entry 1: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_entries_are_skipped_and_listed(hostile, prompt_file):
    entries = [entry for content, _ in ERRORS.values() if isinstance(content, list)
               for entry in content]  # fmt: skip
    failures: list[Failure] = []
    path = prompt_file(json.dumps([*entries, *ENTRIES]))
    questions = read_questions(path, skipped=failures)
    assert [question.entry.index for question in questions] == [14, 15]
    assert [failure.prompt_index for failure in failures] == [*range(14)]
    assert all(failure.reason.startswith("entry ") for failure in failures)


def test_a_decompression_bomb_is_named_before_anything_is_answered(
    pictures, prompt_file, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"entry 0: .*a\.png: more than 100 pixels"):
        read_questions(prompt_file(LIST))
