"""Scoring a picture: finding its objects and checking them against the prompt.

It knows the shapes and colours of :mod:`recipes.shapes.render`, and nothing about the model.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import cv2
import numpy as np
from PIL import Image

from recipes.shapes.render import RGB, outlines
from recipes.shapes.scene import (
    COLORS,
    IMAGE_SIZE,
    PLACE_RANGES,
    SHAPES,
    Group,
    Object,
    Scene,
    are_apart,
)

_ZOOM = 5
_CHROMA = 48  # largest minus smallest of red, green and blue; near 0 for the ground
_SPECK = 8.0  # smallest area of an object in pixels; the smallest that is drawn has 35
_LIKENESS = {"circle": 0.85, "square": 0.85, "cross": 0.78, "triangle": 0.7}
"""Minimum intersection over union with the ideal shape; few pixels make corners blunt."""
_SLACK = 3.5  # pixels that the scorer accepts beyond the ranges of a place


def find_objects(image: Image.Image) -> list[Object]:
    """Find the objects of a picture.

    Args:
        image: A square image of any size, scaled to :data:`recipes.shapes.scene.IMAGE_SIZE` pixels.

    Returns:
        One :class:`Object` for each patch of colour; its shape is ``"unknown"`` if the patch
        resembles no shape.
    """
    small = np.asarray(image.convert("RGB"))
    pixels = cv2.resize(small, (IMAGE_SIZE * _ZOOM,) * 2, interpolation=cv2.INTER_LINEAR)
    chroma = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(
        (chroma > _CHROMA).astype(np.uint8), connectivity=4
    )
    objects = []
    for label in range(1, count):
        if statistics[label, cv2.CC_STAT_AREA] < _SPECK * _ZOOM**2:
            continue
        patch = labels == label
        color = _nearest_color(pixels[patch & (chroma >= np.quantile(chroma[patch], 0.5))])
        # The edge of an object is where its colour is half as strong as inside.
        inside = patch & (chroma > 0.5 * np.quantile(chroma[patch], 0.75))
        objects.append(_measure(inside, color))
    return objects


def is_right(scene: Scene, objects: Sequence[Object]) -> bool:
    """Return whether the objects are exactly those that the scene asks for.

    Every object must belong to a group, with its shape and with the count, colour, size, place and
    relation that the prompt specifies.
    """
    wanted = [group for group in scene.groups for _ in range(group.count)]
    if len(objects) != len(wanted):
        return False
    first = scene.groups[0].count
    return any(
        all(map(_fits, order, wanted))
        and (
            scene.relation is None or are_apart(order[:first], scene.relation, order[first:], gap=0)
        )
        for order in permutations(objects)
    )


class ShapesScorer:
    """Scores pictures whose prompts carry a scene as metadata, for the evaluation."""

    def __call__(self, image: Image.Image, metadata: dict[str, Any]) -> float:
        """Return 1 if the picture shows exactly what its prompt asks for, else 0."""
        return float(is_right(Scene.from_metadata(metadata), find_objects(image)))


def _nearest_color(pixels: np.ndarray) -> str:
    """Return the name of the colour nearest in CIELAB to the median of uint8 ``(pixels, 3)``."""
    median = np.median(pixels, axis=0)
    swatches = np.array([median, *(RGB[color] for color in COLORS)], np.float32)[None] / 255
    lab = cv2.cvtColor(swatches, cv2.COLOR_RGB2LAB)[0]
    return COLORS[int(np.linalg.norm(lab[1:] - lab[0], axis=1).argmin())]


def _measure(inside: np.ndarray, color: str) -> Object:
    """Measure the object whose zoomed pixels are a bool mask ``(height, width)``."""
    x, y, width, height = cv2.boundingRect(inside.astype(np.uint8))
    shown = inside[y : y + height, x : x + width]
    likeness = {shape: _likeness(shape, shown) for shape in SHAPES}
    shape = max(SHAPES, key=lambda name: likeness[name])
    if likeness[shape] < _LIKENESS[shape] or not 0.7 < width / height < 1.4:
        shape = "unknown"
    center = ((x + width / 2) / _ZOOM, (y + height / 2) / _ZOOM)
    return Object(shape, color, *center, radius=(width + height) / 4 / _ZOOM)


def _likeness(shape: str, shown: np.ndarray) -> float:
    """Return the intersection over union of a mask and the ideal shape in its bounding box."""
    height, width = shown.shape
    ideal = np.zeros(shown.shape, np.uint8)
    for part in outlines(Object(shape, "", 0.0, 0.0, 1.0)):
        points = (np.array(part) + 1) / 2 * (width, height) - 0.5
        cv2.fillPoly(ideal, [np.rint(points * 16).astype(np.int32)], 1, shift=4)
    return float((shown & (ideal > 0)).sum() / (shown | (ideal > 0)).sum())


def _fits(found: Object, group: Group) -> bool:
    """Return whether an object fits the description of a group."""
    if found.shape != group.shape or group.color not in (None, found.color):
        return False
    if group.size not in (None, found.size):
        return False
    if group.place is None:
        return True
    ranges = PLACE_RANGES[group.place]
    return all(
        low - _SLACK <= value <= high + _SLACK
        for value, (low, high) in zip((found.x, found.y), ranges)
    )
