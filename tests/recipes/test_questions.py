"""Questions about pictures: their answers follow from the objects, and only one is right."""

import random
import re
from collections import Counter

import pytest
from PIL import Image

from lit_dola.data.item_file import read_items
from lit_dola.data.question_file import read_questions
from recipes.shapes.pictures import write_held_out
from recipes.shapes.questions import ANSWERS, SKILLS, ask
from recipes.shapes.scene import COLORS, SHAPES, Object, place_objects, sample_scene
from recipes.shapes.scorer import find_objects


def pictures(count, seed=0):
    rng = random.Random(seed)
    return [place_objects(sample_scene(rng), rng) for _ in range(count)]


def fitting(objects, phrase):
    """The objects that a noun phrase names, read independently of how it was made."""
    words = phrase.replace("crosses", "cross").split()
    color = next((word for word in words if word in COLORS), None)
    shape = next((word.rstrip("s") if word != "cross" else word for word in words
                  if word.rstrip("s") in SHAPES or word == "cross"), None)  # fmt: skip
    return [
        thing for thing in objects if color in (None, thing.color) and shape in (None, thing.shape)
    ]


def answer(objects, skill, text):
    """The right answer, worked out from the text."""
    if skill == "count":
        return str(len(fitting(objects, re.match(r"How many (.*) are", text)[1])))
    if skill == "yes_no":
        return "yes" if fitting(objects, re.match(r"Is there an? (.*) in the", text)[1]) else "no"
    if skill == "relation":
        name, words, other = re.match(
            r"Is the (.*?) ((?:left|right|above|below).*) the (.*)\?", text
        ).groups()
        ((one,), (two,)) = fitting(objects, name), fitting(objects, other)
        if "left" in words:
            return "left" if one.x < two.x else "right"
        return "above" if one.y < two.y else "below"
    noun = re.search(r"the ((?:\w+ )?(?:object|circle|square|triangle|cross))\b", text)[1]
    (thing,) = fitting(objects, noun)
    if skill == "place":
        return f"{'top' if thing.y < 24 else 'bottom'} {'left' if thing.x < 24 else 'right'}"
    return getattr(thing, skill)


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_follow_from_the_objects(skill):
    rng, asked = random.Random(1), 0
    for objects in pictures(300):
        question = ask(objects, rng, skill)
        if question is None:
            continue
        asked += 1
        assert question.skill == skill
        assert question.answer == answer(objects, skill, question.text), question
        assert question.answer in ANSWERS[skill]
    assert asked > 80


@pytest.mark.slow
def test_every_picture_has_a_question_and_answers_are_balanced():
    rng = random.Random(2)
    asked = [ask(objects, rng) for objects in pictures(3000)]
    skills = Counter(question.skill for question in asked)
    assert set(skills) == set(SKILLS)
    assert min(skills.values()) > 150
    yes = Counter(question.answer for question in asked if question.skill == "yes_no")
    assert 0.45 < yes["yes"] / yes.total() < 0.55


def test_no_question_where_none_is_clear():
    rng = random.Random(3)
    middle = [Object("circle", "red", 24, 24, 8)]
    twins = [Object("circle", "red", 10, 10, 5), Object("circle", "red", 30, 30, 5)]
    for _ in range(20):
        assert ask(middle, rng, "place") is None
        assert ask(middle, rng, "relation") is None
        for skill in ("color", "shape", "size", "place", "relation"):
            assert ask(twins, rng, skill) is None


@pytest.mark.slow
def test_held_out_pictures_with_their_questions_and_captions(tmp_path):
    write_held_out(tmp_path, count=14)
    write_held_out(tmp_path / "again", count=14)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("pictures/*"))
    assert len(names) == 14
    for name in [*names, "questions.jsonl", "items.jsonl"]:
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    questions = read_questions(tmp_path / "questions.jsonl")
    tags = Counter(question.entry.metadata["tag"] for question in questions)
    assert set(tags) == set(SKILLS)
    assert tags["yes_no"] == 28
    labels = Counter(question.entry.metadata["label"] for question in questions)
    assert labels["yes"] == labels["no"] == 14
    for question in questions:
        entry = question.entry.metadata
        (picture,) = question.pictures
        with Image.open(picture) as image:
            objects = find_objects(image)
        assert entry["label"] == answer(objects, entry["tag"], entry["question"])
    for item in read_items(tmp_path / "items.jsonl"):
        assert len(set(item.labels)) == 8
        assert item.labels.count(item.entry.metadata["label"]) == 1
