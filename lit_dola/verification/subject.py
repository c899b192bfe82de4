"""The subject of a verification: a loaded Janus, and how runs with it draw tokens."""

import math
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_dola.decoding.loop import StreamKey, TokenGenerator
from lit_dola.decoding.pool import PooledGenerator, token_generator
from lit_dola.decoding.prefill import Branches
from lit_dola.decoding.scoring import Scoring
from lit_dola.decoding.trial import Enough, first_tokens
from lit_dola.janus.model import ImageBackbone
from lit_dola.verification.measure import Weights, decoded_weights, synchronize

TURNS = 3
_TURN, _LONG = 0.3, 4.0
"""Seconds of a turn, and of one after which there is no other."""
_STEPS = 4
"""Steps of a turn at least."""


class Pace(NamedTuple):
    """Speed of a loop."""

    seconds: float
    """Seconds between two tokens of an image."""
    tokens: int
    """Tokens per image that were drawn."""
    took: float
    """Seconds of a turn."""


@dataclass(eq=False)
class Subject:
    """A loaded Janus, and how runs with it draw tokens."""

    janus: ImageBackbone
    scoring: Scoring
    """DoLa's settings, also if it is off."""
    layer: int
    """Index of the middle layer in ``hidden_states``."""
    prompts: list[Branches]
    """Prompts, of several lengths."""
    exact: bool
    """Set if the model is in float32 or float64."""
    fitting: int
    """Images per batch of a run."""
    short: int
    """Tokens per image that are drawn where a whole image would take too long."""
    compile: bool = False
    graphs: bool = True
    lens: nn.Linear | None = None
    """Readout that was trained for the middle layer."""
    window: int = 16
    """Tokens per pass of speculative decoding."""
    deadline: float = math.inf
    """Time, as :func:`time.monotonic` tells it, after which nothing further starts."""
    pixel_seconds: float | None = None
    """Seconds of the VQ decoder per image, once measured."""
    left_out: list[str] = field(default_factory=list)
    """Checks and measurements for which there was no time."""

    @property
    def weight(self) -> Tensor:
        """A weight of the language model, with its dtype and device."""
        weight: Tensor = self.janus.language_model.embed_tokens.weight
        return weight

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.weight.device

    @property
    def dtype_name(self) -> str:
        """Dtype of the model, e.g. ``bfloat16``."""
        return str(self.weight.dtype).removeprefix("torch.")

    @cached_property
    def weights(self) -> Weights:
        """Size of the weights that a step reads."""
        return decoded_weights(self.janus)

    def in_time(self, name: str) -> bool:
        """Return whether there is time for a check or a measurement; if not, note its name."""
        if time.monotonic() < self.deadline:
            return True
        self.left_out.append(name)
        return False

    def loop(
        self,
        tokens: int,
        *,
        images: int = 1,
        dola: bool = True,
        compile: bool = False,
        scoring: Scoring | None = None,
        window: int | None = None,
        janus: ImageBackbone | None = None,
    ) -> TokenGenerator:
        """Return a token loop as a run's.

        Args:
            tokens: Tokens to draw per image.
            images: Images per batch.
            dola: Contrast the layers.
            compile: Compile the step, if the subject's may be.
            scoring: Other settings.
            window: Tokens per pass; None: one at a time.
            janus: Another model, e.g. with quantized weights.
        """
        janus = janus or self.janus
        return token_generator(
            janus, janus.image_head, scoring or self.scoring, window=window,
            layer=self.layer if dola else None, max_new_tokens=tokens,
            max_prompt_length=max(len(ids) for prompt in self.prompts for ids in prompt),
            compile=compile and self.compile, graphs=self.graphs,
            lens=self.lens if dola else None,
            fill_to=1 if self.exact or self.device.type != "cuda" else images,
        )  # fmt: skip

    def keys(self, images: int) -> list[StreamKey]:
        """Return so many keys, of all prompts in turn."""
        prompts = islice(cycle(range(len(self.prompts))), images)
        return [(prompt, place // len(self.prompts)) for place, prompt in enumerate(prompts)]

    def prompts_of(self, keys: Iterable[StreamKey]) -> list[Branches]:
        """Return the prompts that keys select."""
        return [self.prompts[prompt] for prompt, _ in keys]

    def draw(self, generate: TokenGenerator, keys: Iterable[StreamKey], tokens: int) -> Tensor:
        """Draw the first tokens of images, int64 ``(images, tokens)``; a key selects the prompt."""
        found = [*keys]
        return first_tokens(generate, self.prompts_of(found), found, tokens)

    def pace(self, generate: TokenGenerator, images: int) -> Pace:
        """Measure a loop in a batch of so many images: the median of three turns.

        A turn ends after a fraction of a second, but not before a few steps; the prefill and the
        first step do not count. Speculative decoding, whose pace differs from place to place, has
        one turn for the whole image, or what of it fits into a few seconds.
        """
        for _ in range(2 if generate.compile else 1):  # a CUDA graph is recorded in the second one
            self._run(generate, images, 0.0)
        if isinstance(generate, PooledGenerator):
            return self._run(generate, images, _LONG)
        turns = [self._run(generate, images, _TURN)]
        while len(turns) < TURNS and turns[0].took < _LONG:
            turns.append(self._run(generate, images, _TURN))
        return sorted(turns)[len(turns) // 2]

    def _run(self, generate: TokenGenerator, images: int, at_least: float) -> Pace:
        """Run a batch for so many seconds, or to its end."""
        began: list[tuple[int, float]] = []
        calls = last = 0

        def look(step: int, _tokens: Tensor) -> None:
            nonlocal calls, last
            calls, last = calls + 1, step
            if calls == 1:
                synchronize(self.device)
                began.append((step, time.perf_counter()))
            elif calls > _STEPS:
                synchronize(self.device)
                if time.perf_counter() - began[0][1] >= at_least:
                    raise Enough

        keys = self.keys(images)
        with suppress(Enough):
            generate(self.prompts_of(keys), keys, look)
        synchronize(self.device)
        ((first, start),) = began
        took = time.perf_counter() - start
        return Pace(took / max(1, last - first), last, took)

    def batches(self) -> list[int]:
        """Return the numbers of images per batch that are measured."""
        return sorted({1, min(8, self.fitting), self.fitting})
