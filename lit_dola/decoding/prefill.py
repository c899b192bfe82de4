"""Prefill: runs prompts through the layers before their first tokens are drawn."""

import math
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


def prefill(
    decoder: Decoder,
    prompts: Sequence[Branches],
    cache: KVCache,
    shared: bool,
    embeddings: Tensor | None = None,
) -> Tensor:
    """Run every prompt by itself, in a shape that depends on it alone, and fill its rows.

    Args:
        decoder: Model and settings.
        prompts: The branches of each sequence's prompt.
        cache: Filled from slot 0 on.
        shared: Whether sequences of one prompt share a pass.
        embeddings: What negative token ids stand for, ``(rows, hidden)``.

    Returns:
        The states that the first tokens are drawn from,
        ``(layers, sequences * branches, 1, hidden)``.
    """
    sequences: dict[Any, list[int]] = {}
    for sequence, prompt in enumerate(prompts):
        key = (tuple(map(tuple, prompt)), None if shared else sequence)
        sequences.setdefault(key, []).append(sequence)
    device = decoder.language_model.embed_tokens.weight.device
    place = torch.empty(len(prompts), dtype=torch.long)
    states: list[Tensor] = []
    for copies in sequences.values():
        place[copies] = len(states)
        branches = torch.arange(len(prompts[0]))
        rows = torch.tensor(copies) * len(branches) + branches[:, None]
        states.append(_run(decoder, prompts[copies[0]], cache, rows.to(device), embeddings))
    together = torch.stack(states, dim=1)  # (layers, prompts, branches, 1, hidden)
    return together[:, place.to(device)].flatten(1, 2)


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
