"""Questions about a picture, with the answers that follow from its objects.

Open questions ask for a colour, a shape, a size, a number, a place or a relation; yes/no questions
ask whether an object is there, half of them about one that is not, in POPE's manner (Li et al.
2023, section 4.1). Every question has one right answer.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from recipes.shapes.scene import COLORS, SHAPES, SIZES, Object

SKILLS = ("color", "shape", "size", "count", "place", "relation", "yes_no")
ANSWERS = {
    "color": COLORS,
    "shape": SHAPES,
    "size": SIZES,
    "count": ("0", "1", "2", "3"),
    "place": ("top left", "top right", "bottom left", "bottom right"),
    "relation": ("left", "right", "above", "below"),
    "yes_no": ("yes", "no"),
}
"""The answers that a skill's questions can have."""
_CLEAR = 4.0
"""Least distance in pixels, from the middle or between objects, where a place is asked for."""


class Question(NamedTuple):
    """A question and its answer."""

    skill: str
    text: str
    answer: str


class _Kind(NamedTuple):
    """Properties of an object that a noun phrase names; None: not named."""

    color: str | None = None
    shape: str | None = None

    def fits(self, thing: Object) -> bool:
        return self.color in (None, thing.color) and self.shape in (None, thing.shape)

    def __str__(self) -> str:
        return f"{self.color} {self.shape or 'object'}" if self.color else self.shape or "object"

    @property
    def plural(self) -> str:
        return str(self) + ("es" if self.shape == "cross" else "s")


def ask(objects: Sequence[Object], rng: random.Random, skill: str | None = None) -> Question | None:
    """Return a question about a picture.

    Args:
        objects: The picture's objects.
        rng: Source of randomness.
        skill: One of :data:`SKILLS`; by default any that the picture allows.

    Returns:
        The question; None if this skill has none about this picture.
    """
    skills = [skill] if skill else rng.sample(SKILLS, len(SKILLS))
    for name in skills:
        asked = _ASK[name](objects, rng)
        if asked:
            return Question(name, *asked)
    return None


_Asked = tuple[str, str] | None


def _only(objects: Sequence[Object], kind: _Kind) -> bool:
    return sum(map(kind.fits, objects)) == 1


def _named(
    objects: Sequence[Object], rng: random.Random, color: bool = True, shape: bool = True
) -> tuple[_Kind, Object] | None:
    """Return a noun phrase that fits exactly one object, and that object."""
    for thing in rng.sample(objects, len(objects)):
        kinds = [_Kind(thing.color, thing.shape)] if color and shape else []
        kinds += [_Kind(shape=thing.shape)] * shape + [_Kind(color=thing.color)] * color
        for kind in rng.sample(kinds, len(kinds)):
            if _only(objects, kind):
                return kind, thing
    return None


def _attribute(objects: Sequence[Object], rng: random.Random, name: str) -> _Asked:
    """Ask for the colour or the shape of an object that is named by the other one."""
    named = _named(objects, rng, color=name != "color", shape=name != "shape")
    if named is None:
        return None
    kind, thing = named
    question = rng.choice((f"What {name} is the {kind}?", f"What is the {name} of the {kind}?"))
    return question, getattr(thing, name)


def _size(objects: Sequence[Object], rng: random.Random) -> _Asked:
    named = _named(objects, rng)
    if named is None:
        return None
    kind, thing = named
    return f"Is the {kind} {' or '.join(rng.sample(SIZES, 2))}?", thing.size


def _count(objects: Sequence[Object], rng: random.Random) -> _Asked:
    kinds = [_Kind(), _Kind(shape=rng.choice(SHAPES)), _Kind(color=rng.choice(COLORS))]
    thing = rng.choice(objects)
    kinds += [_Kind(shape=thing.shape), _Kind(color=thing.color)] * 2
    kind = rng.choice(kinds)
    where = rng.choice(("are there", "are in the image"))
    return f"How many {kind.plural} {where}?", str(sum(map(kind.fits, objects)))


def _place(objects: Sequence[Object], rng: random.Random) -> _Asked:
    named = _named(objects, rng)
    if named is None:
        return None
    kind, thing = named
    x, y = thing.x - 24, thing.y - 24
    if min(abs(x), abs(y)) < _CLEAR:
        return None
    corner = f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"
    return f"In which corner is the {kind}?", corner


def _relation(objects: Sequence[Object], rng: random.Random) -> _Asked:
    first = _named(objects, rng)
    if first is None:
        return None
    second = _named([thing for thing in objects if thing is not first[1]], rng)
    if second is None or not _only(objects, second[0]):
        return None
    (kind, thing), (other_kind, other) = first, second
    x, y = thing.x - other.x, thing.y - other.y
    axes = [("left", "right", x), ("above", "below", y)]
    clear = [axis for axis in axes if abs(axis[2]) >= 2 * _CLEAR]
    if not clear:
        return None
    near, far, distance = rng.choice(clear)
    words = [f"{near} of" if near == "left" else near, f"{far} of" if far == "right" else far]
    choices = " or ".join(rng.sample(words, 2)).replace(" of or ", " or ")
    return f"Is the {kind} {choices} the {other_kind}?", near if distance < 0 else far


def _yes_no(objects: Sequence[Object], rng: random.Random) -> _Asked:
    """Half of the answers are no; half of those mix attributes of objects that are there."""
    if rng.random() < 0.5:
        thing = rng.choice(objects)
        kind, answer = _Kind(thing.color, thing.shape), "yes"
    else:
        colors = {thing.color for thing in objects}
        shapes = {thing.shape for thing in objects}
        hard = rng.random() < 0.5
        kinds = [
            _Kind(color, shape)
            for color in COLORS
            for shape in SHAPES
            if (not hard or color in colors or shape in shapes)
        ]
        absent = [kind for kind in kinds if not any(map(kind.fits, objects))]
        kind, answer = rng.choice(absent), "no"
    if rng.random() < 0.3:
        part = rng.choice((_Kind(color=kind.color), _Kind(shape=kind.shape)))
        if any(map(part.fits, objects)) == (answer == "yes"):
            kind = part
    article = "an" if str(kind)[0] in "aeiou" else "a"
    return f"Is there {article} {kind} in the image?", answer


_ASK: dict[str, Callable[[Sequence[Object], random.Random], _Asked]] = {
    "color": partial(_attribute, name="color"),
    "shape": partial(_attribute, name="shape"),
    "size": _size,
    "count": _count,
    "place": _place,
    "relation": _relation,
    "yes_no": _yes_no,
}
