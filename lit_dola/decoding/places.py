"""Places of a pool: which sequences run, which tokens are known of them, and which are guesses."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_dola.decoding.cache import KVCache
from lit_dola.decoding.prefill import Branches, row_lengths
from lit_dola.decoding.step import Drawn


class Pool:
    """The sequences of a call, of which some have a place, and the tokens that are known of each.

    Args:
        prompts: The branches of each sequence's prompt.
        streams: Random stream of each sequence.
        places: Sequences at once.
        length: Tokens per sequence.
        window: Tokens per pass and sequence at most.
        stop_ids: Token ids that end a sequence.
        logprobs: Log-probabilities that are measured of each token.
    """

    def __init__(
        self,
        prompts: Sequence[Branches],
        streams: Tensor,
        places: int,
        length: int,
        window: int,
        stop_ids: Sequence[int],
        logprobs: int = 0,
    ) -> None:
        self.prompts, self.length = prompts, length
        self._streams = streams
        self._lengths = row_lengths(prompts, streams).view(len(prompts), -1)
        self._longest: list[int] = self._lengths.amax(dim=1).tolist()
        self._offsets = torch.arange(window, device=streams.device)
        self._stop_ids = streams.new_tensor(stop_ids) if stop_ids else None
        self._tokens = streams.new_zeros(len(prompts), length + 2 * window)
        self._finite = torch.ones_like(self._tokens, dtype=torch.bool)
        self._logprobs = self._tokens.new_zeros(logprobs, *self._tokens.shape, dtype=torch.float32)
        self._known = torch.zeros_like(streams)
        self._ends = torch.zeros_like(streams)
        self.forwards = torch.zeros_like(streams)
        """Passes that each sequence took after its prefill."""
        self.sequences: list[int | None] = [None] * places
        """The sequence at each place."""
        # The same on the device, and more of each place:
        self._running = streams.new_zeros(places)
        self.count = streams.new_zeros(places, 1)
        """Tokens that are known, int64 ``(places, 1)``."""
        self.streams = streams.new_zeros(places)
        """Random streams, int64 ``(places,)``."""
        self._row_lengths = self._lengths.new_zeros(places, self._lengths.shape[1])

    @property
    def prompt_lengths(self) -> Tensor:
        """Tokens of each row's prompt, ``(rows, 1)``."""
        return self._row_lengths.view(-1, 1)

    def streams_of(self, sequences: list[int]) -> Tensor:
        """Return the random streams of some sequences."""
        return self._streams[sequences]

    def rows(self, places: list[int]) -> Tensor:
        """Return the rows of some places, int64."""
        count = self._lengths.shape[1]
        rows = [place * count + branch for place in places for branch in range(count)]
        return self._running.new_tensor(rows)

    def longest(self, counts: list[int]) -> int:
        """Return how many slots the longest row uses."""
        return max(
            self._longest[sequence] + count
            for sequence, count in zip(self.sequences, counts)
            if sequence is not None
        )

    def begin(self, begun: dict[int, int], first: Drawn) -> None:
        """Give sequences a place.

        Args:
            begun: The sequence that each place takes.
            first: First token of each, perhaps followed by copies of the last one.
        """
        places, sequences = [*begun], [*begun.values()]
        for place, sequence in begun.items():
            self.sequences[place] = sequence
        self._tokens[sequences] = first.tokens[: len(begun)]  # also the first guesses
        self._finite[sequences, :1] = first.finite[: len(begun)]
        self._logprobs[:, sequences, :1] = first.logprobs[:, : len(begun)]
        self._running[places] = self._running.new_tensor(sequences)
        self.count[places] = 1
        self.streams[places] = self._streams[sequences]
        self._row_lengths[places] = self._lengths[sequences]
        self._settle()

    def inputs(self, width: int) -> Tensor:
        """Return the last known token at each place, and the guesses after it."""
        return self._tokens[self._running[:, None], self.count - 1 + self._offsets[:width]]

    def accept(self, inputs: Tensor, drawn: Drawn) -> None:
        """Accept what follows from known tokens alone; what else was drawn are new guesses."""
        width = inputs.shape[1]
        guessed_right = inputs[:, 1:] == drawn.tokens[:, :-1]
        right = 1 + guessed_right.cumprod(dim=1).sum(dim=1, keepdim=True)
        rows, at = self._running[:, None], self.count + self._offsets[:width]
        self._tokens[rows, at] = drawn.tokens
        self._finite[rows, at] = drawn.finite
        self._logprobs[:, rows, at] = drawn.logprobs
        # What enters the window: its last token again. benchmarks/README.md compares guesses.
        self._tokens[rows, at + width] = drawn.tokens[:, -1:]
        self.forwards[self._running] += (self.count < self.length)[:, 0]
        self.count = (self.count + right).clamp(max=self.length)
        self._settle()

    def _settle(self) -> None:
        """End sequences that have stopped; their stop token is repeated."""
        if self._stop_ids is not None:
            at = torch.arange(self.length, device=self.count.device)
            tokens = self._tokens[self._running, : self.length]
            stops = torch.isin(tokens, self._stop_ids) & (at < self.count)
            first = stops.int().argmax(dim=1, keepdim=True)
            stopped = stops.any(dim=1, keepdim=True)
            after = stopped & (at > first)
            held = tokens.gather(1, first).where(after, tokens)
            self._tokens[self._running, : self.length] = held
            self._finite[self._running, : self.length] |= after
            self._ends[self._running] = (first + 1).where(stopped, self.count)[:, 0]
            self.count = self.count.masked_fill(stopped, self.length)
        self._known[self._running] = self.count[:, 0]

    def drop(self, complete: list[int], cache: KVCache) -> list[int]:
        """Give up places whose sequences are complete; the last ones move into the gaps.

        Returns:
            The former place of each that is left.
        """
        left = len(self.sequences) - len(complete)
        order = [*range(left)]
        gaps = [place for place in complete if place < left]
        movers = [place for place in range(left, len(self.sequences)) if place not in complete]
        if movers:
            cache.move(self.rows(movers), self.rows(gaps))
        for gap, mover in zip(gaps, movers):
            order[gap] = mover
        self.sequences = [self.sequences[place] for place in order]
        self._running, self.count = self._running[order], self.count[order]
        self.streams, self._row_lengths = self.streams[order], self._row_lengths[order]
        return order

    def drawn(self) -> Tensor:
        """Return the tokens without the guesses, ``(sequences, length)``, -1 in their place."""
        tokens = self._tokens[:, : self.length]
        places = torch.arange(self.length, device=tokens.device)
        return tokens.where(places < self._known[:, None], -1)

    def result(self) -> Drawn:
        """Return the tokens of all sequences."""
        length = self.length if self._stop_ids is None else int(self._ends.max())
        found = self._tokens, self._finite, self._logprobs
        return Drawn(*(each[..., :length] for each in found))
