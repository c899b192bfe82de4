"""What the VQ tokenizer loses: ``python -m recipes.shapes.round_trip checkpoints/shapes-janus``."""

import random
import sys

import numpy as np
import torch
from PIL import Image
from transformers import JanusForConditionalGeneration

from recipes.shapes.render import render
from recipes.shapes.scene import place_objects, sample_scene
from recipes.shapes.scorer import find_objects, is_right


@torch.no_grad()
def round_trip(checkpoint: str, pictures: int) -> int:
    """How many pictures still show what they did, once they were tokens.

    Args:
        checkpoint: Folder of a Janus in transformers' layout.
        pictures: How many are drawn, in the training's proportions.
    """
    vq = JanusForConditionalGeneration.from_pretrained(checkpoint).model.vqmodel.float().eval()
    right = 0
    for place in range(pictures):
        rng = random.Random(f"round trip {place}")
        scene = sample_scene(rng)
        pixels = np.asarray(render(place_objects(scene, rng), rng), dtype=np.float32)
        latents = vq.encoder(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None])
        quantized, _, _ = vq.quantize(vq.quant_conv(latents))
        decoded = vq.decoder(vq.post_quant_conv(quantized))[0].permute(1, 2, 0)
        image = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        right += is_right(scene, find_objects(Image.fromarray(image)))
    return right


if __name__ == "__main__":
    print(f"{round_trip(sys.argv[1], 400)} of 400")
