"""Pictures and question files for tests."""

import json
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

newest_processor = pytest.mark.skipif(
    int(version("transformers").split(".")[0]) < 5,
    reason="transformers 4 rounds otherwise, and its processor knows only 576 tokens per picture",
)
"""For comparisons with transformers' own processor."""
QUESTIONS = [
    ("a.png", "What is in the image?"),
    ("b.png", "Is there a red apple in the image?"),
    ("a.png", "Is there a blue bird on the branch, or is it a brown dog that sleeps?"),
    (["a.png", "b.png"], "Which is darker?"),
    ("c.jpg", "猫は何匹いますか"),
    ("b.png", "What?"),
    ("c.jpg", "How many crosses are there?"),
]


def write_pictures(folder):
    """Three pictures, none of them square."""
    generator = np.random.default_rng(0)
    for name, size in {"a.png": (120, 200, 3), "b.png": (77, 33, 3), "c.jpg": (64, 90, 3)}.items():
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(folder / name)


def write_questions(folder, questions=QUESTIONS, name="questions.jsonl", **more):
    """A question file with labels, beside its pictures."""
    write_pictures(folder)
    entries = [
        {"question_id": 7 + index, "image": image, "question": question, "label": "yes", **more}
        for index, (image, question) in enumerate(questions)
    ]
    path = folder / name
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def answers(folder):
    """The lines of ``answers.jsonl``."""
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
