"""Hypothesis strategies that several tests share, and a share of what could be tried."""

import math
from zlib import crc32

import torch
from hypothesis import settings
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

alphas = st.just(0.0) | st.floats(1e-6, 1.0)
strengths = st.sampled_from([0.0, 1.0]) | st.floats(0.0, 1.0)
dtypes = st.sampled_from(DTYPES)


@st.composite
def logits(draw, count=2, max_vocab=40, largest=1e4, dtype=None):
    """``count`` tensors of logits of one shape, dtype and leading shape, finite."""
    dtype = dtype or draw(dtypes)
    shape = [*draw(st.lists(st.integers(1, 3), max_size=2)), draw(st.integers(1, max_vocab))]
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, largest]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    made = []
    for _ in range(count):
        values = torch.rand(shape, generator=generator) * 2 - 1
        if draw(st.booleans()):  # ties, and one token far above all others
            values = values.round()
        made.append((values * scale).to(dtype))
    return made


def log(alpha):
    return math.log(alpha) if alpha else -math.inf


def share(values):
    """Return a quarter of the values, always the same ones; in the thorough profile all of them."""
    if settings.get_current_profile_name() == "thorough":
        return [*values]
    return [value for value in values if crc32(repr(value).encode()) % 4 == 0]
