"""What a step cannot be faster than: its reads, at the bandwidth of a large copy."""

from statistics import median
from typing import NamedTuple

import torch

from benchmarks.stages import timed
from lit_dola.decoding.cache import KVCache
from lit_dola.janus.model import TransformersJanus

_COPIED_NUMBERS = 2**28
"""Float32 numbers: 1 GiB, far more than any cache of a processor holds."""


class Weights(NamedTuple):
    """What a step reads: the language model without its embedding, and the head."""

    numel: int
    nbytes: int


def decoded_weights(janus: TransformersJanus) -> Weights:
    """Return the size of the weights that a step reads."""
    weights = [*janus.language_model.layers.parameters(), *janus.gen_head.parameters()]
    return Weights(sum(w.numel() for w in weights), sum(w.nbytes for w in weights))


def cache_bytes(janus: TransformersJanus, images: int, tokens: int) -> int:
    """Return the bytes of the cache that a step reads half-way through the images."""
    half_way = KVCache(
        janus.language_model.config, rows=2 * images, slots=24 + tokens // 2,
        dtype=janus.image_head.linear.weight.dtype, device=torch.device("meta"),
    )  # fmt: skip
    return sum(buffer.nbytes for buffer in [*half_way.keys, *half_way.values])


def copy_bandwidth(device: torch.device) -> float:
    """Return bytes per second, read and written."""
    buffer = torch.ones(_COPIED_NUMBERS, device=device)
    target = torch.empty_like(buffer)
    seconds = median(timed(lambda: target.copy_(buffer), device) for _ in range(7))
    return 2 * buffer.nbytes / seconds
