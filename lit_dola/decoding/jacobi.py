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
from lit_dola.decoding.loop import OnStep, TokenGenerator
from lit_dola.decoding.prefill import Branches, row_lengths


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
        first: tuple[Tensor, Tensor],
        cache: KVCache,
        streams: Tensor,
        on_step: OnStep | None,
    ) -> tuple[Tensor, Tensor]:
        slots = torch.arange(cache.slots, device=streams.device)
        state = _State(
            self.max_new_tokens, self.window, *first, streams, row_lengths(prompts, slots)
        )
        # A GPU would wait whenever the host looks, and its graphs have a fixed number of rows.
        looks = streams.device.type == "cpu" and not self.compile
        known, attended = len(prompts), slots
        while known < len(prompts) * self.max_new_tokens:
            before, inputs = state.known, state.inputs()
            if looks:
                attended = self._attended(slots, state.longest() + self.window)
            drawn, ok = self._run_step(
                cache, inputs, state.streams, state.count, state.prompt_lengths, attended
            )
            state.accept(inputs, drawn, ok)
            if looks:
                state.drop_finished(cache)
            # On a GPU, what was known before this pass: it computes while the host waits.
            known = self._read(state.known if looks else before)
            if on_step is not None:
                on_step(known // len(prompts), state.drawn())
        self.forwards = state.forwards
        return state.tokens[:, : self.max_new_tokens], state.finite[:, : self.max_new_tokens]

    def _read(self, known: Tensor) -> int:
        """Read a number from the device: the only wait of the loop."""
        return int(known)


def token_generator(*args: Any, window: int | None = None, **settings: Any) -> TokenGenerator:
    """Return the token loop for a window, or one token at a time without one.

    Args:
        args: As :class:`TokenGenerator`.
        window: As :class:`SpeculativeGenerator`; None: one token at a time.
        settings: As :class:`TokenGenerator`.
    """
    if window is None:
        return TokenGenerator(*args, **settings)
    return SpeculativeGenerator(*args, window=window, **settings)


class _State:
    """The tokens that are known and the guesses after them, for every sequence of the batch.

    Args:
        length: Tokens per sequence.
        window: Tokens per pass.
        first: First token of each sequence, int64 ``(sequences, 1)``.
        ok: Whether its logits are finite.
        streams: Random stream of each sequence.
        prompt_lengths: Tokens of each row's prompt, ``(rows, 1)``.
    """

    def __init__(
        self,
        length: int,
        window: int,
        first: Tensor,
        ok: Tensor,
        streams: Tensor,
        prompt_lengths: Tensor,
    ) -> None:
        self.length = length
        self.offsets = torch.arange(window, device=first.device)
        self.tokens = first.repeat(1, length + 2 * window)
        self.finite = torch.ones_like(self.tokens, dtype=torch.bool)
        self.finite[:, :1] = ok
        self.forwards = torch.zeros_like(streams)
        self.known = torch.ones_like(streams).sum()
        """Tokens of all sequences that are known; on the device."""
        # Of those that the next pass runs, see drop_finished:
        self.running = torch.arange(len(first), device=first.device)
        self.count = torch.ones_like(first)
        """Tokens of each that are known, int64 ``(running, 1)``."""
        self.streams = streams
        self.lengths = prompt_lengths.view(len(first), -1)
        """Tokens of the prompt of each one's rows, ``(running, branches)``."""

    @property
    def prompt_lengths(self) -> Tensor:
        """Tokens of each running row's prompt, ``(rows, 1)``."""
        return self.lengths.reshape(-1, 1)

    def inputs(self) -> Tensor:
        """The last known token of each sequence, and the guesses after it."""
        return self.tokens[self.running[:, None], self.count - 1 + self.offsets]

    def accept(self, inputs: Tensor, drawn: Tensor, ok: Tensor) -> None:
        """Accept what follows from known tokens alone; what else was drawn are new guesses."""
        guessed_right = inputs[:, 1:] == drawn[:, :-1]
        right = 1 + guessed_right.cumprod(dim=1).sum(dim=1, keepdim=True)
        rows, places = self.running[:, None], self.count + self.offsets
        self.tokens[rows, places] = drawn
        self.finite[rows, places] = ok
        # What enters the window: its last token again. benchmarks/README.md compares guesses.
        self.tokens[rows, places + len(self.offsets)] = drawn[:, -1:]
        self.forwards[self.running] += (self.count < self.length)[:, 0]
        before = self.count
        self.count = (before + right).clamp(max=self.length)
        self.known = self.known + (self.count - before).sum()

    def drawn(self) -> Tensor:
        """Return the tokens without the guesses, ``(sequences, length)``, -1 in their place."""
        counts = torch.full_like(self.forwards, self.length)
        counts[self.running] = self.count[:, 0]
        tokens = self.tokens[:, : self.length]
        places = torch.arange(self.length, device=tokens.device)
        return tokens.where(places < counts[:, None], -1)

    def longest(self) -> int:
        """Return how many slots the longest row uses; waits for the device."""
        return int((self.lengths + self.count).max())

    def drop_finished(self, cache: KVCache) -> None:
        """Stop running sequences that are complete; the last ones take their rows."""
        finished = (self.count == self.length)[:, 0]
        left = int((~finished).sum())
        if left == len(finished):
            return
        gaps = finished[:left].nonzero()[:, 0]
        movers = (~finished[left:]).nonzero()[:, 0] + left
        rows = torch.arange(self.lengths.numel(), device=gaps.device).view_as(self.lengths)
        cache.move(rows[movers].flatten(), rows[gaps].flatten())
        states = self.running, self.count, self.streams, self.lengths
        for state in states:
            state[gaps] = state[movers]
        self.running, self.count, self.streams, self.lengths = (state[:left] for state in states)
