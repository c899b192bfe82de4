"""The token loop whose sequences share a pool of rows, each advancing at its own pace.

A row whose sequence is complete takes the next one, so that nobody waits for the slowest.

With a window it is speculative Jacobi decoding: several tokens per pass, and the very same tokens.
The noise of every position is known beforehand, so an image is the fixed point of
``x[i] = argmax(scores(x[:i]) + noise[i])``. A pass runs a window of guesses at once and draws the
token after each of them with that position's own noise. The first is right; each next one is right
as long as the guess before it was. That prefix is accepted, and the rest are the next guesses.
Nothing is rejected at random and nothing is approximated, unlike in speculative methods that keep
the distribution only.

Source: Song et al., "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving"
(2021), and Wiggers and Hoogeboom, "Predictive Sampling with Forecasting Autoregressive Models"
(2020); the coupling by Gumbel noise as in Daliri et al., "Coupling without Communication and
Drafter-Invariant Speculative Decoding" (2024); rows that advance independently as in HB-SJD (arXiv
2608.18183, 2026).
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_dola.decoding.cache import KVCache
from lit_dola.decoding.loop import OnStep, TokenGenerator
from lit_dola.decoding.pace import Pace
from lit_dola.decoding.places import Pool
from lit_dola.decoding.prefill import Branches, PromptCache, longest_prompt, prefill
from lit_dola.decoding.step import Drawn, draw


class PooledGenerator(TokenGenerator):
    """Draws sequences in a pool of rows; every sequence advances at its own pace.

    Args:
        args: As :class:`TokenGenerator`.
        window: Tokens per pass and sequence; 1: one at a time.
        adapts: Whether passes are as narrow as is fastest, in float32 on a CPU with the step as
            written: elsewhere the width would change the rounding, or be compiled anew.
        places: Sequences at once; None: all of a call.
        stop_ids: Token ids that end a sequence.
        settings: As :class:`TokenGenerator`.

    Example:
        >>> generate = PooledGenerator(
        ...     janus, janus.image_head, scoring, layer=24, max_new_tokens=576, window=16, places=4
        ... )
    """

    def __init__(
        self,
        *args: Any,
        window: int = 1,
        adapts: bool = True,
        places: int | None = None,
        stop_ids: Sequence[int] = (),
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.window = self.lookahead = window
        self.adapts = adapts and window > 1
        self.places = places
        self.stop_ids = tuple(stop_ids)
        self.pace = Pace(window)
        """The choice of widths, kept from call to call."""

    def _decode(
        self,
        prompts: Sequence[Branches],
        streams: Tensor,
        embeddings: Tensor | None,
        on_step: OnStep | None,
    ) -> Drawn:
        length, branches = self.max_new_tokens, len(prompts[0])
        most = max(self.places or len(prompts), self._compiled_for(branches))
        pool = Pool(
            prompts, streams, min(len(prompts), most), length, self.window, self.stop_ids,
            2 if self.decoder.logprobs else 0,
        )  # fmt: skip
        cache = self._cache_for(len(pool.sequences) * branches, longest_prompt(prompts))
        kept, waiting = self._kept_for(embeddings), deque(range(len(prompts)))
        # A GPU would wait whenever the host looks, and its graphs have a fixed number of rows.
        looks = streams.device.type == "cpu" and not self.compile
        adapts = looks and self.adapts and cache.keys[0].dtype.itemsize >= 4
        attended = torch.arange(cache.slots, device=streams.device)
        width, slots = self.window, attended
        counts = [length] * len(pool.sequences)  # tokens known at each place: none is in use
        while True:
            complete = [place for place, count in enumerate(counts) if count == length]
            if complete and waiting:
                begun = {place: waiting.popleft() for place in complete[: len(waiting)]}
                self._begin(pool, cache, begun, kept, embeddings)
                counts = [1 if place in begun else count for place, count in enumerate(counts)]
                continue
            if looks and complete:
                counts = [counts[place] for place in pool.drop(complete, cache)]
            if all(count == length for count in counts):
                break
            began = time.perf_counter()
            if adapts:
                width = self.pace.width(len(counts))
            if looks:
                attended = self._attended(slots, pool.longest(counts) + width)
            before, inputs = pool.count, pool.inputs(width)
            drawn = self._run_step(
                cache, inputs, pool.streams, pool.count, pool.prompt_lengths, attended
            )
            pool.accept(inputs, drawn)
            # On a GPU, what was known before this pass: it computes while the host waits.
            earlier, counts = counts, self._read(pool.count if looks else before)
            if adapts:
                true = [new - old for old, new in zip(earlier, counts) if new < length]
                self.pace.note(width, len(counts), time.perf_counter() - began, true)
            if on_step is not None:
                complete_before = len(prompts) - len(waiting) - len(counts)
                known = complete_before * length + sum(counts)
                on_step(known // len(prompts), pool.drawn())
        self.forwards = pool.forwards
        return pool.result()

    def _begin(
        self,
        pool: Pool,
        cache: KVCache,
        begun: dict[int, int],
        kept: PromptCache | None,
        embeddings: Tensor | None,
    ) -> None:
        """Prefill sequences and draw their first tokens.

        Args:
            pool: The pool.
            cache: The cache of its rows.
            begun: The sequence that each place takes.
            kept: As of :func:`prefill`.
            embeddings: As of :func:`prefill`.
        """
        prompts = [pool.prompts[sequence] for sequence in begun.values()]
        if used := [place for place in begun if pool.sequences[place] is not None]:
            cache.clear(pool.rows(used))
        states = prefill(self.decoder, prompts, cache, kept, embeddings, [*begun])
        streams = pool.streams_of([*begun.values()])
        # Below float32 a GPU draws for as many sequences as it does at every step.
        spare = max(self.fill_to - len(begun), 0)
        copies = states[:, -len(prompts[0]) :].repeat(1, spare, 1, 1)
        states = torch.cat([states, copies], dim=1)
        streams = torch.cat([streams, streams[-1:].expand(spare)])
        drawn = draw(self.decoder, states, streams, torch.zeros_like(streams)[:, None])
        pool.begin(begun, drawn)

    def _read(self, counts: Tensor) -> list[int]:
        """Read numbers from the device: the only wait of the loop."""
        found: list[int] = counts[:, 0].tolist()
        return found


def token_generator(
    *args: Any, window: int | None = None, stop_ids: Sequence[int] = (), **settings: Any
) -> TokenGenerator:
    """Return the token loop for some settings: in step if all sequences advance alike.

    Args:
        args: As :class:`TokenGenerator`.
        window: As :class:`PooledGenerator`; None: one token at a time.
        stop_ids: As :class:`PooledGenerator`.
        settings: As :class:`PooledGenerator`.
    """
    if window is not None or stop_ids:
        return PooledGenerator(*args, window=window or 1, stop_ids=stop_ids, **settings)
    for pooled in ("places", "adapts"):
        settings.pop(pooled, None)
    return TokenGenerator(*args, **settings)
