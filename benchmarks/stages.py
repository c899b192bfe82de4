"""How cost grows with the images of a batch, and what prefill, decode, VQ and writing take."""

import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.models import random_prompts
from lit_dola.decoding import DecodingConfig, ImageKey, ImageTokenGenerator
from lit_dola.janus import TransformersJanus
from lit_dola.module import to_pillow, to_uint8

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes, the device's work included."""
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_scaling(janus: TransformersJanus, layer: int, compile: bool) -> dict[str, Any]:
    """Milliseconds a step over the first 32 tokens, by images in a batch, without and with DoLa."""
    device = janus.language_model.embed_tokens.weight.device
    (prompt,), all_tokens = random_prompts(1), janus.num_image_tokens
    steps: dict[str, list[float]] = {"c": [], "d": []}
    janus.num_image_tokens = 32
    for images in BATCHES:
        keys = [ImageKey(0, i) for i in range(images)]
        for name, middle in (("c", None), ("d", layer)):
            generate = ImageTokenGenerator(janus, DecodingConfig(layer=middle), compile=compile)
            run = partial(generate, [prompt] * images, keys)
            run()
            seconds = median(timed(run, device) for _ in "123")
            steps[name].append(1e3 * seconds / 32)
    janus.num_image_tokens = all_tokens
    return {"images": list(BATCHES), "milliseconds_a_step": steps}


def measure_stages(
    janus: TransformersJanus, layer: int, prompts: int, images: int, compile: bool
) -> dict[str, float]:
    """Milliseconds an image of each stage, with DoLa, for all images in one batch."""
    device, count = janus.language_model.embed_tokens.weight.device, prompts * images
    keys = [ImageKey(i, j) for i in range(prompts) for j in range(images)]
    input_ids = [random_prompts(prompts)[key.prompt_index] for key in keys]
    all_tokens = janus.num_image_tokens
    generate = ImageTokenGenerator(janus, DecodingConfig(layer=layer), compile=compile)
    janus.num_image_tokens = 1  # drawn from the prefill alone
    generate(input_ids, keys)
    prefill = median(timed(lambda: generate(input_ids, keys), device) for _ in "123")
    janus.num_image_tokens = all_tokens
    if compile:
        generate(input_ids, keys)
    decode = timed(lambda: generate(input_ids, keys), device) - prefill
    with torch.inference_mode():
        tokens = torch.randint(16384, (1, 576), device=device)
        pixels = to_uint8(janus.decode_image_tokens(tokens))
        vq = median(timed(lambda: janus.decode_image_tokens(tokens), device) for _ in "123")
    image = to_pillow(pixels[0])
    write = median(
        timed(lambda: image.save(io.BytesIO(), "JPEG", quality=95, subsampling=0), device)
        for _ in range(9)
    )
    stages = {"prefill": prefill / count, "decode": decode / count, "VQ": vq, "JPEG": write}
    return {name: 1e3 * seconds for name, seconds in stages.items()}


def plot(result: dict[str, Any], path: Path) -> None:
    """Scaling on the left, stages on the right; needs matplotlib."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    scaling = result["scaling"]
    for name, label in (("c", "DoLa off"), ("d", "DoLa on")):
        left.plot(scaling["images"], scaling["milliseconds_a_step"][name], marker="o", label=label)
    left.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="ms a step")
    left.set_xticks(scaling["images"], scaling["images"])
    left.legend()
    right.barh(list(result["stages"]), list(result["stages"].values()))
    right.set(xscale="log", xlabel="ms an image")
    right.invert_yaxis()
    figure.suptitle("{preset}, {dtype}".format(**result["settings"]))
    figure.savefig(path, dpi=120)
