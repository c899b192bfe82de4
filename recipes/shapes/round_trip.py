"""VQ round trips: ``python -m recipes.shapes.round_trip checkpoints/shapes-janus``."""

import random
import sys

import torch
from transformers import JanusForConditionalGeneration

from lit_dola.janus.vq import encode_pixels, from_pillow, to_pillow, to_uint8
from recipes.shapes.render import render
from recipes.shapes.scene import IMAGE_SIZE, place_objects, sample_scene
from recipes.shapes.scorer import find_objects, is_right


@torch.no_grad()
def round_trip(checkpoint: str, pictures: int) -> int:
    """Count the pictures that are still right after encoding and decoding.

    Args:
        checkpoint: Folder of a Janus in transformers' layout.
        pictures: Pictures to draw, in the proportions of the training.
    """
    vq = JanusForConditionalGeneration.from_pretrained(checkpoint).model.vqmodel.float().eval()
    right = 0
    for place in range(pictures):
        rng = random.Random(f"round trip {place}")
        scene = sample_scene(rng)
        pixel_values = from_pillow(render(place_objects(scene, rng), rng), IMAGE_SIZE)[None]
        decoded = to_uint8(vq.decode(encode_pixels(vq, pixel_values)))[0]
        right += is_right(scene, find_objects(to_pillow(decoded)))
    return right


if __name__ == "__main__":
    print(f"{round_trip(sys.argv[1], 400)} of 400")
