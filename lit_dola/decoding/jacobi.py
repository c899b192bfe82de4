"""Speculative Jacobi decoding: several tokens per pass, and the very same tokens.

The noise of every position is known beforehand, so an image is the fixed point of
``x[i] = argmax(scores(x[:i]) + noise[i])``. A pass runs a window of guesses at once and draws the
token after each of them with that position's own noise. The first is right; each next one is right
as long as the guess before it was. That prefix is accepted, and the rest are the next guesses.
Nothing is rejected at random and nothing is approximated, unlike in speculative methods that keep
the distribution only.

Source: Song et al., "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving"
(2021), and Wiggers and Hoogeboom, "Predictive Sampling with Forecasting Autoregressive Models"
(2020); the coupling by Gumbel noise as in Daliri et al., "Coupling without Communication and
Drafter-Invariant Speculative Decoding" (2024).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_dola.decoding.cache import KVCache
from lit_dola.decoding.loop import Branches, OnStep, TokenGenerator, row_lengths


class SpeculativeGenerator(TokenGenerator):
    """Draws image tokens in windows; every sequence advances at its own pace.

    Args:
        args: As :class:`TokenGenerator`.
        window: Tokens per pass and sequence, at least 2.
        settings: As :class:`TokenGenerator`; stop tokens are not supported.

    Example:
        >>> generate = SpeculativeGenerator(
        ...     janus, janus.image_head, Scoring(), layer=24, max_new_tokens=576, window=16
        ... )
    """

    def __init__(self, *args: Any, window: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.stop_ids:
            raise ValueError("stop tokens are not supported with a window")
        self.window = window
        self.lookahead = window

    def _decode(
        self,
        prompts: Sequence[Branches],
        cache: KVCache,
        streams: Tensor,
        on_step: OnStep | None,
    ) -> tuple[Tensor, Tensor]:
        slots = torch.arange(cache.slots, device=streams.device)
        prompt_lengths = row_lengths(prompts, slots)
        first = self._first_token(prompts, cache, streams)
        state = _Window(self.max_new_tokens, self.window, *first)
        known, all_tokens = len(prompts), len(prompts) * self.max_new_tokens
        while known < all_tokens:
            before = state.known
            inputs = state.inputs()
            drawn, ok = self._run_step(cache, inputs, streams, state.count, prompt_lengths, slots)
            state.accept(inputs, drawn, ok)
            # On a GPU, read the state before this pass: the device computes while the host waits.
            known = int(state.known if streams.device.type == "cpu" else before)
            if on_step is not None:
                on_step(known // len(prompts))
        self.forwards = state.forwards
        return state.result()


class _Window:
    """The tokens that are known, and the guesses after them.

    Args:
        length: Tokens per sequence.
        window: Tokens per pass.
        first: First token of each sequence, int64 ``(sequences, 1)``.
        ok: Whether its logits are finite.
    """

    def __init__(self, length: int, window: int, first: Tensor, ok: Tensor) -> None:
        sequences = len(first)
        self.length = length
        self.offsets = torch.arange(window, device=first.device)
        self.tokens = first.repeat(1, length + 2 * window)
        self.finite = torch.ones_like(self.tokens, dtype=torch.bool)
        self.finite[:, :1] = ok
        self.count = torch.ones_like(first)
        """Tokens of each sequence that are known, int64 ``(sequences, 1)``."""
        self.forwards = first.new_zeros(sequences)
        self.known = self.count.sum()
        """Tokens of all sequences that are known; on the device."""

    def inputs(self) -> Tensor:
        """The last known token of each sequence, and the guesses after it."""
        return self.tokens.gather(1, self.count - 1 + self.offsets)

    def accept(self, inputs: Tensor, drawn: Tensor, ok: Tensor) -> None:
        """Accept what follows from known tokens alone; what else was drawn are new guesses."""
        guessed_right = inputs[:, 1:] == drawn[:, :-1]
        right = 1 + guessed_right.cumprod(dim=1).sum(dim=1, keepdim=True)
        places = self.count + self.offsets
        self.tokens.scatter_(1, places, drawn)
        self.finite.scatter_(1, places, ok)
        # What enters the window: its last token again. See benchmarks/README.md for other guesses.
        self.tokens.scatter_(1, places + len(self.offsets), drawn[:, -1:].expand_as(drawn))
        self.forwards += (self.count < self.length)[:, 0]
        self.count = (self.count + right).clamp(max=self.length)
        self.known = self.count.sum()

    def result(self) -> tuple[Tensor, Tensor]:
        """The tokens, and whether their logits were finite: each ``(sequences, length)``."""
        return self.tokens[:, : self.length], self.finite[:, : self.length]
