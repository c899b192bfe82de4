"""Scenes: the objects that a prompt asks for, its wording, and a picture's exact ground truth.

The skills are those of GenEval (Ghosh et al. 2023, section 3: single object, two objects,
counting, colours, position, colour attribution), and ``composition``, which combines all of them.
Scenes are stored as GenEval's metadata: ``tag``, and a list ``include`` of ``class``, ``count``,
``color``, ``position``; ``size`` and ``place`` are additions of this project.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple")
SIZES = ("small", "large")
PLACES = ("left", "right", "top", "bottom", "middle")
RELATIONS = ("left of", "right of", "above", "below")
SKILLS = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
    "composition",
)
IMAGE_SIZE = 48
"""Height and width of a picture, pixels."""
RADII = {"small": (4.2, 5.3), "large": (7.2, 9.0)}
"""Half of an object's height and width, in pixels."""
GAP = 2.5
"""Minimum number of pixels between the bounding boxes of two objects."""
PLACE_RANGES = {
    "left": ((0.0, 16.5), (0.0, 48.0)),
    "right": ((31.5, 48.0), (0.0, 48.0)),
    "top": ((0.0, 48.0), (0.0, 16.5)),
    "bottom": ((0.0, 48.0), (31.5, 48.0)),
    "middle": ((20.0, 28.0), (20.0, 28.0)),
}
"""Ranges of an object's centre in pixels: x from the left, y from the top."""
HELD_OUT_PERCENT = 15

_WEIGHTS = (1, 1, 1.5, 1, 1.5, 1.5, 2)
_OPPOSITE = {"right of": "left of", "below": "above"}
_NUMBERS = {2: "two", 3: "three"}
_OPENINGS = ("", "", "a photo of ", "a picture of ", "an image of ")
_WORDS = {
    "small": ("small", "little"),
    "large": ("large", "big"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "middle": ("in the middle", "in the center"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


@dataclass(frozen=True)
class Group:
    """Objects that one noun phrase names; an attribute that is None is unspecified."""

    shape: str
    count: int = 1
    color: str | None = None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Scene:
    """The objects that one prompt asks for, and no others.

    Attributes:
        skill: One of :data:`SKILLS`.
        groups: One or two groups.
        relation: One of :data:`RELATIONS`: the position of every object of the first group relative
            to every object of the second.
    """

    skill: str
    groups: tuple[Group, ...]
    relation: str | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the scene in GenEval's form: the second object first, the first relative to it."""
        include: list[dict[str, Any]] = []
        for group in reversed(self.groups):
            said = {"size": group.size, "color": group.color, "place": group.place}
            said = {key: value for key, value in said.items() if value}
            include.append({"class": group.shape, "count": group.count, **said})
        if self.relation:
            include[1]["position"] = [self.relation, 0]
        return {"tag": self.skill, "include": include}

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> "Scene":
        """Create a scene from what :meth:`metadata` returned."""
        groups = [
            Group(
                entry["class"],
                entry["count"],
                entry.get("color"),
                entry.get("size"),
                entry.get("place"),
            )
            for entry in reversed(metadata["include"])
        ]
        position = metadata["include"][-1].get("position")
        return cls(metadata["tag"], tuple(groups), position[0] if position else None)


@dataclass(frozen=True)
class Object:
    """An object of a picture: its centre ``(x, y)`` and half its extent, in pixels."""

    shape: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def size(self) -> str:
        """``small`` or ``large``, whichever is closer to its extent."""
        limit = (RADII["small"][1] + RADII["large"][0]) / 2
        return "small" if self.radius < limit else "large"


def is_held_out(scene: Scene) -> bool:
    """Return whether this combination is excluded from training, in any wording.

    "A left of B" equals "B right of A", and "A and B" equals "B and A".
    """
    groups, relation = scene.groups, scene.relation
    if relation in _OPPOSITE:
        groups, relation = groups[::-1], _OPPOSITE[relation]
    elif relation is None:
        groups = tuple(sorted(groups, key=repr))
    return zlib.crc32(repr((groups, relation)).encode()) % 100 < HELD_OUT_PERCENT


def sample_scene(
    rng: random.Random,
    split: Literal["train", "held_out"] = "train",
    skill: str | None = None,
) -> Scene:
    """Draw a random scene.

    Args:
        rng: Source of randomness.
        split: Whether to draw from the combinations of training or from the held-out ones.
        skill: One of :data:`SKILLS`; by default any.
    """
    while True:
        scene = _any_scene(rng, skill or rng.choices(SKILLS, _WEIGHTS)[0])
        if is_held_out(scene) == (split == "held_out"):
            return scene


def _any_scene(rng: random.Random, skill: str) -> Scene:
    """Draw a scene of a skill, from either split."""

    def group(colored: bool, sized: float = 0.35, **what: Any) -> Group:
        color = rng.choice(COLORS) if colored else None
        size = rng.choice(SIZES) if rng.random() < sized else None
        return Group(rng.choice(SHAPES), color=color, size=size, **what)

    if skill in ("single_object", "colors"):
        place = rng.choice(PLACES) if rng.random() < 0.35 else None
        return Scene(skill, (group(skill == "colors", place=place),))
    if skill == "counting":
        return Scene(skill, (group(rng.random() < 0.5, count=rng.choice((2, 3))),))
    colored = skill in ("color_attr", "composition")
    first, second = group(colored), group(colored)
    if skill == "composition":
        first = replace(first, count=rng.choice((1, 2)))
    while first.shape == second.shape and first.color == second.color:
        second = group(colored)
    related = skill in ("position", "composition")
    return Scene(skill, (first, second), rng.choice(RELATIONS) if related else None)


def describe(scene: Scene, rng: random.Random) -> str:
    """Return a prompt for the scene, in one of several wordings."""
    phrases = [_noun_phrase(group, rng) for group in scene.groups]
    between = f" {rng.choice(_WORDS[scene.relation])} " if scene.relation else " and "
    return rng.choice(_OPENINGS) + between.join(phrases)


def _noun_phrase(group: Group, rng: random.Random) -> str:
    size = rng.choice(_WORDS[group.size]) if group.size else None
    noun = (
        group.shape if group.count == 1 else group.shape + ("es" * (group.shape == "cross") or "s")
    )
    words = " ".join(word for word in (size, group.color, noun) if word)
    article = _NUMBERS.get(group.count) or ("an" if words[0] in "aeiou" else "a")
    place = " " + rng.choice(_WORDS[group.place]) if group.place else ""
    return f"{article} {words}{place}"


def place_objects(scene: Scene, rng: random.Random) -> list[Object]:
    """Place the objects of a scene at random until every condition holds."""
    while True:
        placed: list[list[Object]] = []
        for group in scene.groups:
            color = group.color or rng.choice(COLORS)
            size = group.size or rng.choice(SIZES)
            placed.append([_place(group, color, size, rng) for _ in range(group.count)])
        objects = [thing for group in placed for thing in group]
        apart = all(
            max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP
            for i, a in enumerate(objects)
            for b in objects[:i]
        )
        if apart and (not scene.relation or are_apart(placed[0], scene.relation, placed[1])):
            return objects


def _place(group: Group, color: str, size: str, rng: random.Random) -> Object:
    radius = rng.uniform(*RADII[size])
    ranges = PLACE_RANGES[group.place] if group.place else ((0.0, IMAGE_SIZE),) * 2
    low, high = radius + 1, IMAGE_SIZE - radius - 1
    x, y = (rng.uniform(max(low, start), min(high, end)) for start, end in ranges)
    return Object(group.shape, color, x, y, radius)


def are_apart(
    first: Sequence[Object], relation: str, second: Sequence[Object], gap: float = GAP
) -> bool:
    """Return whether every first object has a relation to every second one, with a gap between.

    Args:
        first: Objects.
        relation: One of :data:`RELATIONS`.
        second: Objects.
        gap: Minimum number of pixels between bounding boxes along the relation's axis.
    """
    sign = 1 if relation in ("left of", "above") else -1
    axis = "x" if relation in ("left of", "right of") else "y"
    return all(
        sign * (getattr(b, axis) - getattr(a, axis)) >= a.radius + b.radius + gap
        for a in first
        for b in second
    )
