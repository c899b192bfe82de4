"""Prefill: runs prompts through the layers before their first tokens are drawn."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_dola.decoding.cache import KVCache, PrefillView
from lit_dola.decoding.step import Decoder, forward_layers

PREFILL_BUCKET = 16
"""A prompt is prefilled in a shape of a multiple of this many tokens."""

Branches = tuple[Sequence[int], ...]
"""Token ids of a prompt's conditional branch and, with guidance, of its unconditional branch.
``-1 - k`` stands for row k of the embeddings that come with the prompts, as those of pictures."""


class PromptCache:
    """Keys and values of the last prompts, so that equal prompts run once.

    Args:
        tokens: Tokens to keep at most, over all branches; a longer prompt is not kept.
    """

    def __init__(self, tokens: int = 512) -> None:
        self.tokens = tokens
        self._kept: OrderedDict[Any, tuple[list[list[Tensor]], Tensor]] = OrderedDict()
        """Of each buffer of the cache the part of each branch, and the last states."""

    def restore(
        self, branches: Branches, cache: KVCache, rows: Sequence[Sequence[int]]
    ) -> Tensor | None:
        """Fill the rows of a prompt that was run before; return its states.

        Args:
            branches: The branches of the prompt.
            cache: Filled from slot 0 on.
            rows: Rows of the cache that start from each branch.
        """
        if (found := self._kept.get(_key(branches))) is None:
            return None
        self._kept.move_to_end(_key(branches))
        parts, states = found
        for own, kept in zip(rows, zip(*parts)):
            at = torch.tensor(own, device=states.device)
            for buffer, part in zip(cache.buffers, kept):
                buffer[at, :, : part.shape[1]] = part
        return states

    def keep(
        self, branches: Branches, cache: KVCache, rows: Sequence[Sequence[int]], states: Tensor
    ) -> None:
        """Keep a prompt that has just been run; arguments as of :meth:`restore`."""
        if sum(map(len, branches)) > self.tokens:
            return
        parts = [
            [buffer[own[0], :, : len(ids)].clone() for own, ids in zip(rows, branches)]
            for buffer in cache.buffers
        ]
        self._kept[_key(branches)] = parts, states
        while sum(len(ids) for key in self._kept for ids in key) > self.tokens:
            self._kept.popitem(last=False)


def _key(branches: Branches) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, branches))


def prefill(
    decoder: Decoder,
    prompts: Sequence[Branches],
    cache: KVCache,
    kept: PromptCache | None,
    embeddings: Tensor | None = None,
    places: Sequence[int] | None = None,
) -> Tensor:
    """Run every prompt by itself, in a shape that depends on it alone, and fill its rows.

    Args:
        decoder: Model and settings.
        prompts: The branches of each sequence's prompt.
        cache: Filled from slot 0 on.
        kept: Prompts that were run before; None: every sequence runs its own prompt.
        embeddings: What negative token ids stand for, ``(rows, hidden)``.
        places: Place of each sequence in the cache, counted in sequences; None: in order.

    Returns:
        The states that the first tokens are drawn from,
        ``(layers, sequences * branches, 1, hidden)``.
    """
    sequences: dict[Any, list[int]] = {}
    for sequence, prompt in enumerate(prompts):
        key = _key(prompt), sequence if kept is None else None
        sequences.setdefault(key, []).append(sequence)
    device = decoder.language_model.embed_tokens.weight.device
    order = torch.empty(len(prompts), dtype=torch.long)
    at = range(len(prompts)) if places is None else places
    states: list[Tensor] = []
    for copies in sequences.values():
        branches = prompts[copies[0]]
        order[copies] = len(states)
        count = len(branches)
        rows = [[at[copy] * count + branch for copy in copies] for branch in range(count)]
        found = kept.restore(branches, cache, rows) if kept is not None else None
        if found is None:
            found = _run(decoder, branches, cache, torch.tensor(rows, device=device), embeddings)
            if kept is not None:
                kept.keep(branches, cache, rows, found)
        states.append(found)
    together = torch.stack(states, dim=1)  # (layers, prompts, branches, 1, hidden)
    return together[:, order.to(device)].flatten(1, 2)


def _run(
    decoder: Decoder, branches: Branches, cache: KVCache, rows: Tensor, embeddings: Tensor | None
) -> Tensor:
    """Run the branches of one prompt; returns the states of the last token of each.

    They run together, or one by one if their lengths differ.
    """
    if len({*map(len, branches)}) > 1:
        each = zip(branches, rows)
        states = [_run(decoder, (ids,), cache, own[None], embeddings) for ids, own in each]
        return torch.cat(states, dim=1)
    length = len(branches[0])
    bucket = round_up(length, PREFILL_BUCKET)
    padded = [[*ids, *[0] * (bucket - length)] for ids in branches]
    input_ids = torch.tensor(padded, device=rows.device)
    causal = torch.ones(bucket, bucket, dtype=torch.bool, device=rows.device).tril()
    return forward_layers(
        decoder,
        _embed(decoder, input_ids, embeddings),
        causal[None, None],
        torch.arange(bucket, device=rows.device)[None],
        PrefillView(cache, rows, length),
        kept=slice(length - 1, length),
    )


def _embed(decoder: Decoder, input_ids: Tensor, embeddings: Tensor | None) -> Tensor:
    """Return the inputs of token ids, some of which may stand for embeddings."""
    inputs: Tensor = decoder.language_model.embed_tokens(input_ids.clamp(min=0))
    if embeddings is None:
        return inputs
    others = embeddings[(-1 - input_ids).clamp(min=0)].to(inputs.dtype)
    return others.where((input_ids < 0)[..., None], inputs)


def longest_prompt(prompts: Sequence[Branches]) -> int:
    """Return the number of token ids of the longest prompt."""
    return max(len(ids) for branches in prompts for ids in branches)


def row_lengths(prompts: Sequence[Branches], like: Tensor) -> Tensor:
    """Return the length of each row's prompt, ``(rows, 1)``, on the device of ``like``."""
    return like.new_tensor([len(ids) for branches in prompts for ids in branches])[:, None]


def round_up(count: int, to: int) -> int:
    """Return the smallest multiple of ``to`` that is at least ``count``."""
    return math.ceil(count / to) * to
