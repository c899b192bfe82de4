"""Drawing objects with Pillow, anti-aliased."""

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from recipes.shapes.scene import IMAGE_SIZE, Object

RGB = {
    "red": (220, 35, 40),
    "orange": (245, 125, 20),
    "yellow": (245, 225, 50),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (145, 50, 180),
}
_GROUND = (245, 245, 245)
_SCALE = 4
_ARM = 0.36  # half the width of a cross's arm, relative to its radius


def render(objects: Sequence[Object], rng: random.Random) -> Image.Image:
    """Draw the objects on a light ground; each colour varies a little.

    Returns:
        An RGB image, :data:`IMAGE_SIZE` pixels wide and high.
    """
    image = Image.new("RGB", (IMAGE_SIZE * _SCALE,) * 2, _GROUND)
    draw = ImageDraw.Draw(image)
    for thing in objects:
        color = tuple(min(255, max(0, v + rng.randint(-10, 10))) for v in RGB[thing.color])
        for part in outlines(thing):
            points = [(x * _SCALE - 0.5, y * _SCALE - 0.5) for x, y in part]
            draw.polygon(points, fill=color)
    return image.reduce(_SCALE)


def outlines(thing: Object) -> list[list[tuple[float, float]]]:
    """Return the polygons of an object, in pixels."""
    if thing.shape == "circle":
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        parts = [list(zip(np.cos(angles).tolist(), np.sin(angles).tolist()))]
    elif thing.shape == "square":
        parts = [[(-1, -1), (1, -1), (1, 1), (-1, 1)]]
    elif thing.shape == "triangle":
        parts = [[(0, -1), (1, 1), (-1, 1)]]
    else:
        a = _ARM
        parts = [
            [(-1, -a), (1, -a), (1, a), (-1, a)],
            [(-a, -1), (a, -1), (a, 1), (-a, 1)],
        ]
    return [[(thing.x + x * thing.radius, thing.y + y * thing.radius) for x, y in p] for p in parts]
