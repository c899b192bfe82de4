"""``python -m benchmarks.gpu``: one table of what matters on a GPU, from random weights.

Parts run until the time is up, the most important ones first; the last row names those that were
left out. With ``--preset tiny --device cpu --dtype float32 --compile false`` it runs anywhere.
"""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Any, Literal, get_args

import torch
from jsonargparse import auto_cli
from torch import Tensor

from benchmarks.decode import DTYPES
from benchmarks.methods import make_methods, middle_layer
from benchmarks.models import PAD, Preset, make_scoring, random_janus, random_prompts
from benchmarks.roofline import cache_bytes, copy_bandwidth, decoded_weights
from benchmarks.stages import jpeg_seconds, timed
from lit_dola.decoding.jacobi import token_generator
from lit_dola.decoding.loop import TokenGenerator, cfg_pair
from lit_dola.janus.model import TransformersJanus
from lit_dola.janus.quantization import Quantization, quantize_weights
from lit_dola.janus.vq import to_pillow, to_uint8

IMAGES = (1, 8, 16, 64)
"""Images per batch, each with two rows."""
WINDOWS = (2, 4, 16, 64, 256)
TURNS = 3

Row = tuple[str, str]
"""What was measured, and the figure."""


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    preset: Preset
    device: torch.device
    dtype: torch.dtype
    compile: bool
    tokens: int
    """Tokens per image where it counts."""
    short: int
    """Tokens per image elsewhere."""
    janus: TransformersJanus

    def generator(
        self,
        tokens: int,
        *,
        dola: bool = True,
        window: int | None = None,
        fill_to: int = 1,
        janus: TransformersJanus | None = None,
    ) -> TokenGenerator:
        """Return a token loop with DoLa's defaults, speculative with a window."""
        janus = janus or self.janus
        return token_generator(
            janus, janus.image_head, make_scoring(), window=window,
            layer=middle_layer(janus) if dola else None, max_new_tokens=tokens,
            compile=self.compile, fill_to=fill_to,
        )  # fmt: skip

    def seconds(self, generate: TokenGenerator, images: int) -> float:
        """Return the median time of a batch of one prompt's images, after two to warm up."""
        run = partial(draw, generate, random_prompts(1), [(0, image) for image in range(images)])
        for _ in "12":
            run()
        return median(timed(run, self.device) for _ in range(TURNS))

    def step(self, images: int, **how: Any) -> float:
        """Return the seconds per step of a short batch; the prefill counts as one."""
        return self.seconds(self.generator(self.short, **how), images) / self.short

    def peak(self) -> int:
        """Return the bytes that were allocated at most; on a CPU, those of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@torch.inference_mode()
def draw(generate: TokenGenerator, prompts: list[list[int]], keys: list[tuple[int, int]]) -> Tensor:
    """Draw the tokens of images, ``(images, tokens)``; a key selects the prompt."""
    return generate([cfg_pair(prompts[prompt], PAD) for prompt, _ in keys], keys)


def same_image(bench: Bench) -> Iterator[Row]:
    """Draw images among some neighbours, then among others, of other lengths and fewer."""
    lengths = (12, 60, 24, 200)
    prompts = [random_prompts(1, length)[0] for length in lengths]
    generate = bench.generator(bench.short, fill_to=8)
    many = draw(generate, prompts, [*product((0, 1), range(4))])[:4]
    few = draw(generate, prompts, [(0, 0), (2, 5), (0, 1), (3, 0)])[[0, 2]]
    rest = draw(generate, prompts, [(3, 1), (0, 2), (0, 3)])[1:]
    equal = int((many == torch.cat([few, rest])).all(dim=1).sum())
    yield "images with the same tokens among other neighbours", f"{equal} of 4"


def images_per_second(bench: Bench) -> Iterator[Row]:
    """Whole images, without the VQ decoder."""
    for images in (1, 8, 64):
        seconds = bench.seconds(bench.generator(bench.tokens), images)
        yield f"images per second, {images} at once", f"{images / seconds:.3g}"
        yield f"peak memory, {images} at once", f"{bench.peak() / 2**30:.1f} GiB"


def steps(bench: Bench) -> Iterator[Row]:
    """A step at several numbers of rows, and its reads at the bandwidth of a copy."""
    bandwidth = copy_bandwidth(bench.device)
    yield "bandwidth of a copy", f"{bandwidth / 1e9:.0f} GB/s"
    for images in IMAGES:
        seconds = bench.step(images)
        reads = decoded_weights(bench.janus).nbytes + cache_bytes(bench.janus, images, bench.short)
        yield f"step, {2 * images} rows", f"{1e3 * seconds:.2f} ms"
        yield f"step over its reads, {2 * images} rows", f"{seconds * bandwidth / reads:.2f}"


def dola_over_baseline(bench: Bench) -> Iterator[Row]:
    """Both in turns."""
    with_dola, without = (bench.generator(bench.short, dola=dola) for dola in (True, False))
    ratios = [bench.seconds(with_dola, 8) / bench.seconds(without, 8) for _ in range(TURNS)]
    yield "DoLa over baseline, 16 rows", spread(ratios)


def other_loops(bench: Bench) -> Iterator[Row]:
    """The old script's loop and transformers', over ours."""
    names = {"b": "old script's loop", "a": "transformers' generate, a prompt at a time"}
    for prompts, images in (1, 8), (16, 4):
        methods = make_methods(bench.janus, random_prompts(prompts), images, bench.compile)
        runs = {name: partial(methods[name], bench.short) for name in ("d", *names)}
        runs["d"]()  # compiles
        times = [{name: timed(run, bench.device) for name, run in runs.items()} for _ in "12"][1:]
        for name, loop in names.items():
            ratios = [turn[name] / turn["d"] for turn in times]
            yield f"{loop} over ours, {prompts * images} images", spread(ratios)


def windows(bench: Bench) -> Iterator[Row]:
    """A pass of a window over a step: it pays if more tokens are accepted per pass."""
    step = bench.step(1)
    for window in WINDOWS:
        generate = bench.generator(bench.short, window=window)
        seconds = bench.seconds(generate, 1)
        assert generate.forwards is not None
        per_pass = seconds / (1 + int(generate.forwards.max()))
        yield f"pass over step, 2 rows x window {window}", f"{per_pass / step:.2f}"


def quantized(bench: Bench) -> Iterator[Row]:
    """A step with weights of fewer bits over one without."""
    plain = {images: bench.step(images) for images in (1, 8)}
    for how in get_args(Quantization):
        janus = random_janus(bench.preset, bench.short, bench.dtype, bench.device)
        quantize_weights(janus, how, bench.device)
        for images, seconds in plain.items():
            ratio = bench.step(images, janus=janus) / seconds
            yield f"step in {how} over {bench.dtype}, {2 * images} rows", f"{ratio:.2f}"


@torch.inference_mode()
def pixels(bench: Bench) -> Iterator[Row]:
    """The VQ decoder, one image at a time and in slices of four, and writing a JPEG."""
    decode = bench.janus.decode_image_tokens
    tokens = torch.randint(16384, (4, 576), device=bench.device)
    one, four = (
        median(timed(partial(decode, tokens[:count]), bench.device) for _ in range(TURNS + 1))
        for count in (1, 4)
    )
    yield "VQ decoder, one image", f"{1e3 * one:.1f} ms"
    yield "VQ decoder in slices of four over one at a time", f"{four / (4 * one):.2f}"
    alone = torch.cat([to_uint8(decode(tokens[image : image + 1])) for image in range(4)])
    equal = sum(map(torch.equal, alone, to_uint8(decode(tokens))))
    yield "images whose pixels are the same in a slice", f"{equal} of 4"
    yield "encoding a JPEG", f"{1e3 * jpeg_seconds(to_pillow(alone[0])):.1f} ms"


PARTS = (
    same_image, images_per_second, steps, dola_over_baseline, other_loops, windows, pixels,
    quantized,
)  # fmt: skip


def spread(values: list[float]) -> str:
    """Return the median and, of several values, the lowest and the highest."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


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
    start = time.monotonic()
    where = torch.device(device)
    janus = random_janus(preset, tokens, DTYPES[dtype], where)
    bench = Bench(preset, where, DTYPES[dtype], compile, tokens, short, janus)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    print(f"| {name}, {preset}, {dtype}, torch {torch.__version__} | |\n| --- | --- |", flush=True)
    left_out = []
    for part in PARTS:
        if parts is not None and part.__name__ not in parts:
            continue
        if time.monotonic() - start > 60 * minutes:
            left_out.append(part.__name__)
            continue
        for what, figure in part(bench):
            print(f"| {what} | {figure} |", flush=True)
        torch.compiler.reset()  # frees the memory of CUDA graphs
        if where.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(where)
    if left_out:
        print(f"| left out after {minutes:g} minutes | {', '.join(left_out)} |")


if __name__ == "__main__":
    auto_cli(main)
