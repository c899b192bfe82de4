"""Cost by the images per batch, and the time of each stage of an image."""

import io
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from benchmarks.methods import lit_dola
from benchmarks.models import random_prompts
from lit_dola.janus.model import TransformersJanus
from lit_dola.janus.vq import to_pillow, to_uint8
from lit_dola.verification.measure import timed

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def measure_scaling(janus: TransformersJanus, layer: int, compile: bool) -> dict[str, Any]:
    """Return milliseconds per step over 32 tokens, by images per batch, without and with DoLa."""
    device = janus.language_model.embed_tokens.weight.device
    steps: dict[str, list[float]] = {"c": [], "d": []}
    for images in BATCHES:
        for name, middle in (("c", None), ("d", layer)):
            run = partial(lit_dola(janus, random_prompts(1), images, middle, compile), 32)
            run()
            seconds = median(timed(run, device) for _ in "123")
            steps[name].append(1e3 * seconds / 32)
    return {"images": list(BATCHES), "milliseconds_a_step": steps}


def measure_stages(
    janus: TransformersJanus, layer: int, prompts: int, images: int, compile: bool
) -> dict[str, float]:
    """Return milliseconds per image of each stage, with DoLa, for all images in one batch."""
    device, count = janus.language_model.embed_tokens.weight.device, prompts * images
    generate = lit_dola(janus, random_prompts(prompts), images, layer, compile)
    generate(1)  # the first token comes from the prefill alone
    prefill = median(timed(lambda: generate(1), device) for _ in "123")
    if compile:
        generate(janus.num_image_tokens)
    decode = timed(lambda: generate(janus.num_image_tokens), device) - prefill
    with torch.inference_mode():
        tokens = torch.randint(16384, (1, 576), device=device)
        pixels = to_uint8(janus.decode_image_tokens(tokens))
        vq = median(timed(lambda: janus.decode_image_tokens(tokens), device) for _ in "123")
    write = jpeg_seconds(to_pillow(pixels[0]))
    stages = {"prefill": prefill / count, "decode": decode / count, "VQ": vq, "JPEG": write}
    return {name: 1e3 * seconds for name, seconds in stages.items()}


def jpeg_seconds(image: Image.Image) -> float:
    """Return how long encoding an image as a run does takes."""
    save = partial(image.save, format="JPEG", quality=95, subsampling=0)
    return median(timed(lambda: save(io.BytesIO()), torch.device("cpu")) for _ in range(9))


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot scaling on the left, stages on the right; needs matplotlib."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    scaling = result["scaling"]
    for name, label in (("c", "DoLa off"), ("d", "DoLa on")):
        left.plot(scaling["images"], scaling["milliseconds_a_step"][name], marker="o", label=label)
    left.set(xscale="log", yscale="log", xlabel="images per batch", ylabel="ms per step")
    left.set_xticks(scaling["images"], scaling["images"])
    left.legend()
    right.barh(list(result["stages"]), list(result["stages"].values()))
    right.set(xscale="log", xlabel="ms per image")
    right.invert_yaxis()
    figure.suptitle("{preset}, {dtype}".format(**result["settings"]))
    figure.savefig(path, dpi=120)
