"""Speed: seconds per step, what bounds them, and which loop is faster here."""

from collections.abc import Callable, Iterator
from functools import cached_property
from statistics import median
from typing import get_args

from lit_dola.decoding.loop import NotFiniteError, TokenGenerator
from lit_dola.errors import UserError
from lit_dola.janus.model import ImageBackbone
from lit_dola.janus.quantization import Quantization
from lit_dola.messages import amount, rate_of
from lit_dola.verification.findings import Row, promise
from lit_dola.verification.measure import (
    cache_bytes,
    copy_bandwidth,
    free_memory,
    matrix_throughput,
    peak_bytes,
)
from lit_dola.verification.subject import TURNS, Pace, Subject

_TOKENS = 144
"""Tokens per image that a measured loop has room for."""


class Device:
    """Upper limits of a device, measured when first needed."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @cached_property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return copy_bandwidth(self.subject.device)

    @cached_property
    def throughput(self) -> float:
        """Floating-point operations per second."""
        return matrix_throughput(self.subject.device, self.subject.weight.dtype)

    def rows(self) -> Iterator[Row]:
        """Yield both."""
        yield Row("speed: bandwidth of a copy", f"{self.bandwidth / 1e9:.3g} GB/s")
        yield Row("speed: matrix products", f"{self.throughput / 1e12:.3g} TFLOP/s")

    def step(self, images: int, pace: Pace) -> Row:
        """Return the row of a step."""
        subject, seconds = self.subject, pace.seconds
        rows = images * len(subject.prompts[0])
        reads = subject.weights.nbytes + cache_bytes(subject.janus, rows, pace.tokens)
        products = 2 * subject.weights.numel * rows
        least = {
            "its reads at that bandwidth": reads / self.bandwidth,
            "its products at that rate": products / self.throughput,
        }
        bound = max(least, key=lambda name: least[name])
        return Row(
            f"speed: step, {amount(images, 'images')}",
            f"{1e3 * seconds:.3g} ms; {bound} would take {least[bound] / seconds:.0%} of it",
        )


def measure_fitting(subject: Subject, device: Device, generate: TokenGenerator) -> Iterator[Row]:
    """Measure the batch that fits, with the loop of a run."""
    yield from device.rows()
    images = subject.fitting
    pace = subject.pace(generate, images)
    yield device.step(images, pace)
    tokens = subject.janus.num_image_tokens
    whole = tokens * pace.seconds + images * (subject.pixel_seconds or 0.0)
    rate = rate_of(images / whole, "images")
    yield Row("speed: images", f"{rate}, estimated from {pace.tokens} of {tokens} tokens")
    of = "" if subject.device.type == "cuda" else ", the process as a whole"
    yield Row("speed: peak memory", f"{peak_bytes(subject.device) / 2**30:.2f} GiB{of}")
    yield Row(
        "speed: largest batch",
        f"{amount(images, 'images')}, {amount(images * len(subject.prompts[0]), 'rows')}",
    )


def measure_loops(subject: Subject, device: Device) -> Iterator[Row]:
    """Measure each loop for several batches, and say which is the fastest."""
    for images in subject.batches():
        what = f"loops, {amount(images, 'images')}"
        if not subject.in_time(what):
            continue
        own = "compiled" if subject.compile else "as written"
        found = {own: pace_of(subject, images, compile=True)}
        if images != subject.fitting:
            yield device.step(images, found[own])
        if subject.compile and subject.in_time(f"{what}, as written"):
            found["as written"] = pace_of(subject, images)
        if subject.in_time(f"{what}, speculative"):
            name = f"speculative {subject.window}"
            found[name] = pace_of(subject, images, compile=True, window=subject.window)
        fastest = min(found, key=lambda name: found[name].seconds)
        others = [
            f"{name} takes {pace.seconds / found[fastest].seconds:.2f} of its time"
            for name, pace in found.items()
            if name != fastest
        ]
        yield Row(f"fastest: {amount(images, 'images')}", "; ".join([fastest, *others]))


def pace_of(
    subject: Subject, images: int, *, compile: bool = False, window: int | None = None
) -> Pace:
    """Measure a fresh loop."""
    generate = subject.loop(_TOKENS, images=images, compile=compile, window=window)
    pace = subject.pace(generate, images)
    del generate
    free_memory(subject.device)
    return pace


def measure_dola(subject: Subject) -> Iterator[Row]:
    """Measure DoLa over the baseline, in turns."""
    images = min(8, subject.fitting)
    with_dola, without = (
        subject.loop(_TOKENS, images=images, dola=dola, compile=True) for dola in (True, False)
    )
    ratios: list[float] = []
    while len(ratios) < TURNS and (not ratios or subject.in_time("DoLa over baseline, more turns")):
        ratios.append(
            subject.pace(with_dola, images).seconds / subject.pace(without, images).seconds
        )
    yield Row(f"speed: DoLa over baseline, {amount(images, 'images')}", spread(ratios))


def check_quantized(
    subject: Subject, load: Callable[[Quantization], ImageBackbone]
) -> Iterator[Row]:
    """Load the model in fewer bits, draw with it, and measure a step of one image."""
    plain = pace_of(subject, 1).seconds
    for how in get_args(Quantization):
        name = f"quantized: {how}"
        if not subject.in_time(name):
            continue
        try:
            janus = load(how)
        except UserError as error:  # e.g. int4wo needs a recent GPU
            yield Row(name, f"not here: {error}")
            continue
        generate, keys = subject.loop(subject.short, janus=janus), subject.keys(1)
        found, finite = "finite", True
        try:
            generate([subject.prompts[0]], keys)
        except NotFiniteError as error:
            found, finite = str(error), False
        ratio = subject.pace(generate, 1).seconds / plain
        yield promise(
            name, f"{found}; a step of 1 image takes {ratio:.2f} of {subject.dtype_name}'s time",
            "finite scores", finite, "--model.quantize null",
        )  # fmt: skip
        del janus, generate
        free_memory(subject.device)


def spread(values: list[float]) -> str:
    """Return the median and, of several values, the lowest and the highest."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f}, {len(values)} turns)"
