"""Targets of a vision tower: the words that describe what each patch shows.

A language model that meets a tower that sees nothing yet learns to ignore it. The published vision
tower could see before it became a part of Janus; this is how the small ones learn to.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.shapes.scene import COLORS, IMAGE_SIZE, SHAPES, SIZES, Object

WORDS = ("object", *COLORS, *SHAPES, *SIZES, "left", "right", "top", "bottom")
"""An object's centre is called an object; the other words describe all that its box covers."""


def word_loss(logits: Tensor, pictures: Sequence[Sequence[Object]]) -> Tensor:
    """Return the binary cross entropy of every word at every patch.

    Args:
        logits: ``(pictures, patches, len(WORDS))``.
        pictures: The objects of each picture.

    Returns:
        Nats per object for its centre, plus nats per patch of an object for all other words.
    """
    side = math.isqrt(logits.shape[1])
    targets = torch.stack([word_targets(objects, side) for objects in pictures]).to(logits.device)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    objects = targets[..., 0].sum()
    patches = targets[..., 1:].amax(-1).sum()
    return losses[..., 0].sum() / objects + losses[..., 1:].sum() / patches


def word_targets(objects: Sequence[Object], patches: int) -> Tensor:
    """Return which words say what a patch shows.

    Args:
        objects: A picture's objects.
        patches: Patches along each side.

    Returns:
        Float32 ``(patches * patches, len(WORDS))``, 1 for the words, else 0.
    """
    targets = torch.zeros(patches, patches, len(WORDS))
    size = IMAGE_SIZE / patches
    centres = (torch.arange(patches) + 0.5) * size
    middle = IMAGE_SIZE / 2
    for thing in objects:
        rows, columns = ((centres - at).abs() <= thing.radius for at in (thing.y, thing.x))
        covered = rows[:, None] & columns
        places = ("left" if thing.x < middle else "right", "top" if thing.y < middle else "bottom")
        for word in (thing.color, thing.shape, thing.size, *places):
            targets[..., WORDS.index(word)][covered] = 1
        targets[int(thing.y / size), int(thing.x / size), 0] = 1
    return targets.flatten(0, 1)
