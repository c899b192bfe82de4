"""Shapes: scenes, their pictures, and the scorer."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from lit_dola.janus.vq import from_pillow
from recipes.shapes.data import ShapesDataset
from recipes.shapes.prompts import PROMPTS, held_out_prompts
from recipes.shapes.questions import SKILLS as QUESTION_SKILLS
from recipes.shapes.render import RGB, render
from recipes.shapes.scene import (
    COLORS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    SKILLS,
    Group,
    Object,
    Scene,
    describe,
    is_held_out,
    place_objects,
    sample_scene,
)
from recipes.shapes.scorer import ShapesScorer, find_objects, is_right
from recipes.shapes.training_set import write_training_set

PICTURES = 100  # per skill


def picture(scene, rng):
    return render(place_objects(scene, rng), rng)


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.slow
def test_the_scorer_finds_what_was_drawn(skill):
    rng = random.Random(skill)
    right = 0
    for _ in range(PICTURES):
        scene = sample_scene(rng, rng.choice(["train", "held_out"]), skill)
        drawn = place_objects(scene, rng)
        found = find_objects(render(drawn, rng))
        right += is_right(scene, found)
        for thing in drawn:
            near = min(found, key=lambda other: abs(other.x - thing.x) + abs(other.y - thing.y))
            for name in ("x", "y", "radius"):
                assert getattr(near, name) == pytest.approx(getattr(thing, name), abs=0.6)
    assert right >= 0.99 * PICTURES


@pytest.mark.parametrize("scale", [0.75, 2.0])
@pytest.mark.slow
def test_the_scorer_reads_pictures_of_other_sizes(scale):
    rng = random.Random(0)
    right = 0
    for _ in range(PICTURES):
        scene = sample_scene(rng)
        size = round(IMAGE_SIZE * scale)
        image = picture(scene, rng).resize((size, size), Image.Resampling.BICUBIC)
        right += is_right(scene, find_objects(image))
    assert right >= 0.99 * PICTURES


FACTS = {"shape": SHAPES, "count": (1, 2), "color": COLORS, "size": SIZES}


@pytest.mark.slow
def test_the_scorer_refuses_what_differs_in_one_fact():
    rng = random.Random(1)
    for _ in range(2 * PICTURES):
        facts = [{name: rng.choice(values) for name, values in FACTS.items()} for _ in range(2)]
        scene = Scene("composition", tuple(Group(**one) for one in facts))
        found = find_objects(picture(scene, rng))
        changed, name = rng.choice(facts), rng.choice(list(FACTS))
        changed[name] = rng.choice([value for value in FACTS[name] if value != changed[name]])
        other = Scene("composition", tuple(Group(**one) for one in facts))
        assert is_right(scene, found)
        if asked(other) != asked(scene):  # else one group took the other's place
            assert not is_right(other, found)


def asked(scene):
    return sorted(
        (group.shape, group.color, group.size) for group in scene.groups for _ in range(group.count)
    )


def objects(*things):
    return [Object(shape, color, x, y, r) for shape, color, x, y, r in things]


RED_CIRCLE, BLUE_SQUARE = ("circle", "red", 15, 22, 5), ("square", "blue", 34, 25, 5)
RELATED = Scene("composition", (Group("circle", color="red"), Group("square")), "left of")
JUDGED = {
    "as asked": (RELATED, objects(RED_CIRCLE, BLUE_SQUARE), True),
    "in another order": (RELATED, objects(BLUE_SQUARE, RED_CIRCLE), True),
    "another color": (RELATED, objects(("circle", "blue", 15, 22, 5), BLUE_SQUARE), False),
    "the other side": (RELATED, objects(("circle", "red", 44, 25, 2), BLUE_SQUARE), False),
    "one above the other": (RELATED, objects(("circle", "red", 31, 9, 5), BLUE_SQUARE), False),
    "one missing": (RELATED, objects(RED_CIRCLE), False),
    "one too many": (RELATED, objects(RED_CIRCLE, BLUE_SQUARE, RED_CIRCLE), False),
    "nothing": (RELATED, [], False),
    "no such shape": (RELATED, objects(RED_CIRCLE, ("unknown", "blue", 34, 25, 5)), False),
    "attributes swapped": (
        Scene("color_attr", (Group("circle", color="red"), Group("square", color="blue"))),
        objects(("circle", "blue", 15, 22, 5), ("square", "red", 34, 25, 5)),
        False,
    ),
    "two of three": (
        Scene("counting", (Group("circle", 3),)),
        objects(RED_CIRCLE, ("circle", "red", 38, 38, 5)),
        False,
    ),
    "small": (Scene("single_object", (Group("circle", size="small"),)), objects(RED_CIRCLE), True),
    "large": (Scene("single_object", (Group("circle", size="large"),)), objects(RED_CIRCLE), False),
    "left": (Scene("single_object", (Group("circle", place="left"),)), objects(RED_CIRCLE), True),
    "top": (Scene("single_object", (Group("circle", place="top"),)), objects(RED_CIRCLE), False),
}


@pytest.mark.parametrize("case", JUDGED)
def test_the_judge(case):
    scene, found, right = JUDGED[case]
    assert is_right(scene, found) == right


def test_patches_that_are_no_shape_are_unknown():
    pixels = np.full((48, 48, 3), 245, np.uint8)
    pixels[10:20, 5:44] = RGB["blue"]  # a bar
    pixels[30:32, 30:32] = RGB["red"]  # a speck
    (found,) = find_objects(Image.fromarray(pixels))
    assert (found.shape, found.color) == ("unknown", "blue")
    assert find_objects(Image.new("RGB", (48, 48), (200, 200, 200))) == []


def test_a_scene_in_genevals_form():
    scene = Scene(
        "composition", (Group("circle", 2, "red"), Group("square", size="large")), "above"
    )
    assert scene.metadata() == {
        "tag": "composition",
        "include": [
            {"class": "square", "count": 1, "size": "large"},
            {"class": "circle", "count": 2, "color": "red", "position": ["above", 0]},
        ],
    }
    rng = random.Random(2)
    for _ in range(200):
        scene = sample_scene(rng)
        assert Scene.from_metadata(json.loads(json.dumps(scene.metadata()))) == scene


@pytest.mark.slow
def test_splits_have_no_combination_in_common():
    rng = random.Random(3)

    def facts(scene):
        """The same combination in any wording."""
        relation, groups = scene.relation, [tuple(vars(group).items()) for group in scene.groups]
        if relation in ("right of", "below"):
            groups.reverse()
            relation = {"right of": "left of", "below": "above"}[relation]
        return relation, tuple(groups if relation else sorted(groups, key=repr))

    train = {facts(sample_scene(rng)) for _ in range(20_000)}
    for line in PROMPTS.read_text().splitlines():
        assert facts(Scene.from_metadata(json.loads(line))) not in train


def test_a_held_out_combination_is_so_in_every_order():
    a, b = Group("circle", color="red"), Group("square", color="blue", size="small")
    for relation, opposite in (("left of", "right of"), ("above", "below"), (None, None)):
        scenes = Scene("x", (a, b), relation), Scene("x", (b, a), opposite)
        assert is_held_out(scenes[0]) == is_held_out(scenes[1])


def test_the_prompts_are_those_of_the_script():
    lines = PROMPTS.read_text().splitlines()
    assert lines == held_out_prompts()
    assert len({json.loads(line)["prompt"] for line in lines}) == 40 * len(SKILLS)


def test_wordings():
    rng = random.Random(4)
    scene = Scene(
        "composition", (Group("cross", 2, "orange"), Group("square", 1, "orange")), "above"
    )
    said = {describe(scene, rng) for _ in range(100)}
    assert "two orange crosses above an orange square" in said
    assert "a photo of two orange crosses over an orange square" in said


def test_the_scorer_of_the_evaluation():
    rng = random.Random(5)
    scene = Scene("colors", (Group("triangle", color="green"),))
    image = picture(scene, rng)
    other = Scene("colors", (Group("triangle", color="blue"),))
    assert ShapesScorer()(image, scene.metadata()) == 1.0
    assert ShapesScorer()(image, other.metadata()) == 0.0


def test_the_training_set_of_lenses_has_no_prompt_of_the_study(tmp_path):
    def lines(folder, name):
        return [*map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())]

    write_training_set(tmp_path / "many", 200)
    captions = lines(tmp_path / "many", "captions")
    prompts = {entry["prompt"] for entry in captions}
    assert len(captions) == 200
    assert len(prompts) > 150
    assert not prompts & {json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()}
    write_training_set(tmp_path / "few", 20)
    assert lines(tmp_path / "few", "captions") == captions[:20]
    dataset = ShapesDataset(0, 20, 4242)
    for place, entry in enumerate(captions[:20]):
        with Image.open(tmp_path / "few" / entry["image"]) as image:
            assert np.array_equal(from_pillow(image, 48), dataset[place][0])
    questions = lines(tmp_path / "few", "questions")
    assert questions == lines(tmp_path / "many", "questions")[: len(questions)]
    assert {entry["image"] for entry in questions} == {entry["image"] for entry in captions[:20]}
    assert {entry["tag"] for entry in questions} == {*QUESTION_SKILLS}
