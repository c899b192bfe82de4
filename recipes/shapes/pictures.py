"""Held-out pictures with questions and captions: ``python -m recipes.shapes.pictures FOLDER``.

Their combinations are those that no training picture shows. ``questions.jsonl`` is for ``answer``,
``items.jsonl`` for ``rank``; both name the pictures in ``pictures/``.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.shapes.questions import SKILLS as QUESTION_SKILLS
from recipes.shapes.questions import ask
from recipes.shapes.render import render
from recipes.shapes.scene import SKILLS, Object, Scene, describe, place_objects, sample_scene
from recipes.shapes.scorer import is_right

NUM_CAPTIONS = 8
"""Captions to choose from, one of them right."""


def write_held_out(folder: Path, count: int = 280, seed: int = 0) -> None:
    """Write pictures, questions about each, and captions to choose from.

    Args:
        folder: Folder to write to.
        count: Pictures; as many of each skill.
        seed: Seed of them all.
    """
    rng = random.Random(f"held out {seed}")
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    scenes = [sample_scene(rng, "held_out", SKILLS[n % len(SKILLS)]) for n in range(count)]
    captions = [describe(scene, rng) for scene in scenes]
    questions: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        objects = place_objects(scene, rng)
        file = f"pictures/{number:03}.png"
        render(objects, rng).save(folder / file)
        questions += [{"image": file, **entry} for entry in questions_about(objects, rng)]
        labels = _captions(number, objects, scenes, captions, rng)
        items.append(
            {"image": file, "labels": labels, "label": captions[number], "tag": scene.skill}
        )
    write_lines(folder / "questions.jsonl", questions)
    write_lines(folder / "items.jsonl", items)


def write_lines(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write a file of entries, JSON Lines."""
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")


def questions_about(objects: Sequence[Object], rng: random.Random) -> list[dict[str, Any]]:
    """Return a question of every skill that has one about a picture; of yes/no one of each."""
    asked = {(skill, ""): ask(objects, rng, skill) for skill in QUESTION_SKILLS[:-1]}
    while not {("yes_no", "yes"), ("yes_no", "no")} <= asked.keys():
        question = ask(objects, rng, "yes_no")
        assert question is not None
        asked[question.skill, question.answer] = question
    found = (question for question in asked.values() if question)
    return [{"question": text, "label": answer, "tag": skill} for skill, text, answer in found]


def _captions(
    number: int,
    objects: Sequence[Object],
    scenes: Sequence[Scene],
    captions: Sequence[str],
    rng: random.Random,
) -> list[str]:
    """Return the caption of a picture among others that do not fit it."""
    wrong = [
        caption
        for scene, caption in zip(scenes, captions)
        if not is_right(scene, objects) and caption != captions[number]
    ]
    labels = [captions[number], *rng.sample(sorted(set(wrong)), NUM_CAPTIONS - 1)]
    rng.shuffle(labels)
    return labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=280)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_held_out(arguments.folder, arguments.count, arguments.seed)
