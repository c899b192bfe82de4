"""``python -m benchmarks.gpu``: one table of what matters on a GPU, from random weights.

It has what ``python main.py verify`` measures, and what that has no time for: whole images, other
loops, other windows. Parts run until the time is up, the most important ones first; the last row
names those that were left out. With ``--preset tiny --device cpu --dtype float32 --compile false``
it runs anywhere.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Literal

import torch
from jsonargparse import auto_cli

from benchmarks.decode import DTYPES
from benchmarks.methods import make_methods, middle_layer
from benchmarks.models import PAD, Preset, make_scoring, random_janus, random_prompts
from lit_dola.decoding.loop import TokenGenerator, cfg_pair
from lit_dola.janus.model import ImageBackbone
from lit_dola.janus.quantization import Quantization, quantize_weights
from lit_dola.janus.vq import to_uint8
from lit_dola.verification.findings import Row
from lit_dola.verification.measure import free_memory, peak_bytes, timed
from lit_dola.verification.promises import (
    check_dola,
    check_logits,
    check_pixels,
    check_same_image,
    check_speculative,
)
from lit_dola.verification.speed import Device, check_quantized, measure_dola, pace_of, spread
from lit_dola.verification.subject import TURNS, Subject

IMAGES = (1, 8, 16, 64)
"""Images per batch, each with two rows."""
WINDOWS = (2, 4, 16, 64, 256)


@dataclass(frozen=True)
class Bench:
    """State that all parts share."""

    preset: Preset
    subject: Subject
    device: Device
    tokens: int
    """Tokens per image where it counts."""

    def seconds(self, generate: TokenGenerator, images: int) -> float:
        """Return the median time of a batch, after two to warm up."""
        keys = self.subject.keys(images)
        run = partial(generate, self.subject.prompts_of(keys), keys)
        for _ in "12":
            run()
        return median(timed(run, self.subject.device) for _ in range(TURNS))


def same_image(bench: Bench) -> Iterator[Row]:
    """Draw images among some neighbours, then among others."""
    subject = bench.subject
    generate = subject.loop(subject.short, images=subject.fitting, compile=True)
    yield from check_same_image(subject, generate)


def promises(bench: Bench) -> Iterator[Row]:
    """Compare the loop with transformers' forward pass, and with itself."""
    for check in (check_logits, check_dola, check_speculative):
        yield from check(bench.subject)


def images_per_second(bench: Bench) -> Iterator[Row]:
    """Whole images, without the VQ decoder."""
    for images in (1, 8, 64):
        generate = bench.subject.loop(bench.tokens, images=images, compile=True)
        seconds = bench.seconds(generate, images)
        yield Row(f"images per second, {images} at once", f"{images / seconds:.3g}")
        peak = peak_bytes(bench.subject.device)
        yield Row(f"peak memory, {images} at once", f"{peak / 2**30:.1f} GiB")


def steps(bench: Bench) -> Iterator[Row]:
    """A step at several numbers of rows, and its least time by what bounds it."""
    yield from bench.device.rows()
    for images in IMAGES:
        yield bench.device.step(images, pace_of(bench.subject, images, compile=True))


def dola_over_baseline(bench: Bench) -> Iterator[Row]:
    """Both in turns."""
    yield from measure_dola(bench.subject)


def other_loops(bench: Bench) -> Iterator[Row]:
    """The old script's loop and transformers', over ours."""
    subject, names = bench.subject, {
        "b": "old script's loop", "a": "transformers' generate, a prompt at a time"
    }  # fmt: skip
    for prompts, images in (1, 8), (16, 4):
        janus: Any = subject.janus
        methods = make_methods(janus, random_prompts(prompts), images, subject.compile)
        runs = {name: partial(methods[name], subject.short) for name in ("d", *names)}
        runs["d"]()  # compiles
        times = [{name: timed(run, subject.device) for name, run in runs.items()} for _ in "12"][1:]
        for name, loop in names.items():
            ratios = [turn[name] / turn["d"] for turn in times]
            yield Row(f"{loop} over ours, {prompts * images} images", spread(ratios))


def windows(bench: Bench) -> Iterator[Row]:
    """A pass of a window over a step: it pays if more tokens are accepted per pass."""
    subject = bench.subject
    step = pace_of(subject, 1, compile=True).seconds
    for window in WINDOWS:
        generate = subject.loop(subject.short, window=window, compile=True)
        seconds = bench.seconds(generate, 1)
        assert generate.forwards is not None
        per_pass = seconds / (1 + int(generate.forwards.max()))
        yield Row(f"pass over step, 2 rows x window {window}", f"{per_pass / step:.2f}")


def quantized(bench: Bench) -> Iterator[Row]:
    """A step with weights of fewer bits over one without."""
    subject = bench.subject

    def load(how: Quantization) -> ImageBackbone:
        janus = random_janus(bench.preset, bench.tokens, subject.weight.dtype, subject.device)
        quantize_weights(janus, how, subject.device)
        return janus

    yield from check_quantized(subject, load)


@torch.inference_mode()
def pixels(bench: Bench) -> Iterator[Row]:
    """The VQ decoder, one image at a time and in slices of four, and a JPEG."""
    yield from check_pixels(bench.subject)
    decode, device = bench.subject.janus.decode_image_tokens, bench.subject.device
    tokens = torch.randint(16384, (4, 576), device=device)
    one, four = (
        median(timed(partial(decode, tokens[:count]), device) for _ in range(TURNS + 1))
        for count in (1, 4)
    )
    yield Row("VQ decoder in slices of four over one at a time", f"{four / (4 * one):.2f}")
    alone = torch.cat([to_uint8(decode(tokens[image : image + 1])) for image in range(4)])
    equal = sum(map(torch.equal, alone, to_uint8(decode(tokens))))
    yield Row("images whose pixels are the same in a slice", f"{equal} of 4")


PARTS: tuple[Callable[[Bench], Iterator[Row]], ...] = (
    same_image, images_per_second, steps, dola_over_baseline, promises, other_loops, windows,
    pixels, quantized,
)  # fmt: skip


def main(
    preset: Preset = "7b",
    device: str = "cuda",
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    compile: bool = True,
    tokens: int = 576,
    short: int = 64,
    minutes: float = 7.0,
    parts: list[str] | None = None,
) -> None:
    """Print the table.

    Args:
        preset: Size of the model.
        device: cuda or cpu.
        dtype: Dtype of the model.
        compile: Whether to compile lit-dola's step.
        tokens: Tokens per image where whole images are measured.
        short: Tokens per image elsewhere.
        minutes: After so many, no further part starts.
        parts: Names of the parts to run; null: all.
    """
    where = torch.device(device)
    janus = random_janus(preset, tokens, DTYPES[dtype], where)
    prompts = [cfg_pair(ids, PAD) for ids in random_prompts(1)]
    subject = Subject(
        janus, make_scoring(), middle_layer(janus), prompts, exact=dtype == "float32", fitting=8,
        short=short, compile=compile, graphs=True, deadline=time.monotonic() + 60 * minutes,
    )  # fmt: skip
    bench = Bench(preset, subject, Device(subject), tokens)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    print(f"| {name}, {preset}, {dtype}, torch {torch.__version__} | |\n| --- | --- |", flush=True)
    for part in PARTS:
        if (parts is None or part.__name__ in parts) and subject.in_time(part.__name__):
            for row in part(bench):
                failed = "" if row.ok is not False else f" FAILED, expected {row.expected}"
                print(f"| {row.name} | {row.found}{failed} |", flush=True)
            free_memory(where)
    if subject.left_out:
        print(f"| left out after {minutes:g} minutes | {', '.join(subject.left_out)} |")


if __name__ == "__main__":
    auto_cli(main)
