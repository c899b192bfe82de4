"""Measuring a device: seconds, bandwidth, matrix throughput, memory."""

import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch

from lit_dola.decoding.cache import KVCache
from lit_dola.janus.model import Backbone

_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**27}
"""Far more than the caches of a processor hold, and less than what a model leaves of its memory."""
_MATRIX = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of a matrix product that is bound by arithmetic."""


def synchronize(device: torch.device) -> None:
    """Wait for the work of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that a call takes, including the device's work."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def copy_bandwidth(device: torch.device) -> float:
    """Return bytes per second, read and written, of a large copy."""
    source = torch.ones(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median(timed(lambda: target.copy_(source), device) for _ in range(7))
    return 2 * source.nbytes / seconds


def matrix_throughput(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations per second of a large matrix product."""
    side = _MATRIX[device.type]
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    seconds = median(timed(lambda: matrix @ matrix, device) for _ in range(5))
    return 2 * side**3 / seconds


class Weights(NamedTuple):
    """Size of the weights that a step reads."""

    numel: int
    nbytes: int


def decoded_weights(janus: Backbone) -> Weights:
    """Return the size of the language model without its embedding, and of the head."""
    weights = [*janus.language_model.layers.parameters(), *janus.head_module.parameters()]
    return Weights(sum(w.numel() for w in weights), sum(w.nbytes for w in weights))


def cache_bytes(janus: Backbone, rows: int, tokens: int) -> int:
    """Return the bytes of the cache that a step reads half-way through so many tokens."""
    weight = janus.language_model.embed_tokens.weight
    half_way = KVCache(
        janus.language_model.config, rows=rows, slots=24 + tokens // 2,
        dtype=weight.dtype, device=torch.device("meta"),
    )  # fmt: skip
    return sum(buffer.nbytes for buffer in [*half_way.keys, *half_way.values])


def peak_bytes(device: torch.device) -> int:
    """Return the bytes that were allocated at most; on a CPU, those of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_memory(device: torch.device) -> None:
    """Free what compiled steps and deleted tensors hold, and forget the peak."""
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def total_memory(device: torch.device) -> str:
    """Return a GPU's memory for people; empty for another device."""
    if device.type != "cuda":
        return ""
    return f", {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
