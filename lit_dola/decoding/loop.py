"""The token loop: decodes a batch of sequences, each with one or two branches.

Rows are the conditional branches of all sequences first, then the unconditional ones in the same
order. Left padding, which only aligns prompts of different length, is masked out.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_dola.decoding.cache import KVCache, PrefillView
from lit_dola.decoding.guidance import Scoring
from lit_dola.decoding.sampling import stream_keys
from lit_dola.decoding.step import Decoder, compile_step, decode_step, draw, forward_layers
from lit_dola.janus.layers import LayerAdapter
from lit_dola.janus.model import Backbone, Head
from lit_dola.janus.tokenizer import unconditional_ids

COMPILED_BUCKET = 64
"""A compiled step attends to a multiple of this many slots: one CUDA graph per multiple."""
_STOP_CHECK_EVERY = 16
"""Steps between two looks at whether every sequence has stopped: each look waits for the device."""

Branches = tuple[Sequence[int], ...]
"""Token ids of a prompt's conditional branch and, with guidance, of its unconditional branch."""
StreamKey = tuple[int, int]
"""Prompt index and image index, which select a sequence's random stream."""
OnStep = Callable[[int], None]


class NotFiniteError(ArithmeticError):
    """The logits of some sequences are NaN or infinite.

    Args:
        tokens: The tokens that were drawn anyway, int64 ``(sequences, tokens)``: worthless for the
            sequences in ``steps`` from their step on, sound for all others.
        steps: Index in the batch of each affected sequence, and its first such step.
    """

    def __init__(self, tokens: Tensor, steps: dict[int, int]) -> None:
        super().__init__(f"logits are NaN or infinite at the steps {steps}")
        self.tokens = tokens
        self.steps = steps


def cfg_pair(input_ids: Sequence[int], pad_token_id: int) -> Branches:
    """Return both branches of an image prompt for classifier-free guidance."""
    return tuple(input_ids), unconditional_ids(input_ids, pad_token_id)


class TokenGenerator:
    """Draws the tokens of one batch of sequences after another.

    Args:
        janus: The model.
        head: Predicts and embeds the tokens: ``janus.image_head`` for images.
        scoring: How logits become tokens.
        layer: Index of the middle layer in ``hidden_states``; None turns DoLa off.
        max_new_tokens: Tokens to draw per sequence.
        stop_ids: Token ids that end a sequence; none for images.
        max_prompt_length: Token ids of the longest prompt to come; the cache grows if a prompt is
            longer.
        compile: Whether to compile the step, with CUDA graphs on a GPU. Every batch then uses as
            many rows as the largest batch before it, so that one compilation serves all.

    Example:
        >>> generate = TokenGenerator(
        ...     janus, janus.image_head, Scoring(alpha=0.1), layer=24, max_new_tokens=576
        ... )
        >>> tokens = generate([cfg_pair(input_ids, janus.pad_token_id)], [(0, 0)])
    """

    def __init__(
        self,
        janus: Backbone,
        head: Head,
        scoring: Scoring,
        *,
        layer: int | None,
        max_new_tokens: int,
        stop_ids: Sequence[int] = (),
        max_prompt_length: int = 0,
        compile: bool = False,
    ) -> None:
        run_layer = LayerAdapter.of(janus.language_model)
        if layer is None:
            scoring = scoring.baseline
        needed = layer if scoring.strength > 0 else None
        self.decoder = Decoder(janus.language_model, head, scoring, needed, run_layer)
        self.max_new_tokens = max_new_tokens
        self.stop_ids = tuple(stop_ids)
        self.max_prompt_length = max_prompt_length
        self.compile = compile
        self._cache: KVCache | None = None
        self._step = compile_step(janus.parameters()) if compile else decode_step

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Branches],
        keys: Sequence[StreamKey],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw the tokens of a batch of sequences.

        Args:
            prompts: The branches of each sequence's prompt: one without guidance or two with it,
                the same number for all.
            keys: The random stream of each sequence.
            on_step: Called after each step with the number of tokens drawn per sequence so far;
                the device may still be computing them.

        Returns:
            Token ids, int64 ``(sequences, max_new_tokens)``. A sequence that has stopped repeats
            its stop token; if all have stopped, there may be fewer columns.

        Raises:
            NotFiniteError: If a sequence's logits are NaN or infinite at some step.
        """
        count = len(prompts)
        if self.compile and self._cache is not None:  # fill up with copies of the last sequence
            spare = self._cache.rows // len(prompts[0]) - count
            prompts, keys = [*prompts, *[prompts[-1]] * spare], [*keys, *[keys[-1]] * spare]
        weight = self.decoder.language_model.embed_tokens.weight
        batch = _pad_branches(prompts, weight.device)
        cache = self._cache_for(batch)
        prompt_index, image_index = torch.tensor(keys, device=weight.device).unbind(dim=1)
        streams = stream_keys(self.decoder.scoring.seed, prompt_index, image_index)
        tokens, finite = self._decode(batch, cache, streams, on_step)
        _check_finite(tokens[:count], finite[:count])
        return tokens[:count]

    def _decode(
        self, batch: "_Batch", cache: KVCache, streams: Tensor, on_step: OnStep | None
    ) -> tuple[Tensor, Tensor]:
        """Draw all tokens; returns them and whether their logits were finite."""
        weight = self.decoder.language_model.embed_tokens.weight
        counter = torch.arange(cache.slots, device=weight.device)
        real = batch.attention_mask[batch.rows]
        prompt_lengths = real.sum(dim=1, keepdim=True)
        # Added to attention scores: 0 where there is a token, -inf where there is none yet.
        attention_mask = weight.new_full((len(real), cache.slots), float("-inf"))
        attention_mask[:, : real.shape[1]].masked_fill_(real, 0.0)

        tokens = counter.new_empty(len(streams), self.max_new_tokens)
        finite = torch.ones_like(tokens, dtype=torch.bool)
        stop = _Stop(self.stop_ids, streams)
        states = _prefill(self.decoder, batch, cache)
        token, finite[:, 0] = draw(self.decoder, states, streams, counter[:1])
        for step in range(self.max_new_tokens):
            if step > 0:
                slot = real.shape[1] + step - 1
                attention_mask[:, slot] = 0.0
                if self.compile:
                    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                token, finite[:, step] = self._step(
                    self.decoder, cache, token, streams, counter[step : step + 1],
                    counter[slot : slot + 1], prompt_lengths, self._attended(attention_mask, slot),
                )  # fmt: skip
                token = token.clone()  # a CUDA graph reuses the memory that it returns
            token = stop.hold(token, finite[:, step])
            tokens[:, step] = token
            if on_step is not None:
                on_step(step + 1)
            if stop.all_stopped(step):
                return tokens[:, : step + 1], finite[:, : step + 1]
        return tokens, finite

    def _attended(self, attention_mask: Tensor, slot: int) -> Tensor:
        """Mask of the slots that a step reads: up to its own, or a few more if it is compiled."""
        if not self.compile:
            return attention_mask[:, None, None, : slot + 1]
        attention_mask = attention_mask[:, None, None, : _round_up(slot + 1)]
        torch._dynamo.maybe_mark_dynamic(attention_mask, 3)  # unless there is only one length
        return attention_mask

    def _cache_for(self, batch: "_Batch") -> KVCache:
        """Return the cache of earlier batches if it is large enough, else a new one."""
        rows, length = len(batch.rows), max(self.max_prompt_length, batch.input_ids.shape[1])
        slots = _round_up(length + self.max_new_tokens)
        if self._cache is None or rows > self._cache.rows or slots > self._cache.slots:
            self._cache = None  # free it first
            language_model = self.decoder.language_model
            weight = language_model.embed_tokens.weight
            self._cache = KVCache(language_model.config, rows, slots, weight.dtype, weight.device)
        return self._cache


class _Stop:
    """Which sequences have drawn a stop token."""

    def __init__(self, stop_ids: Sequence[int], streams: Tensor) -> None:
        self.ids = streams.new_tensor(stop_ids) if stop_ids else None
        self.stopped = torch.zeros_like(streams, dtype=torch.bool)
        self.last = torch.zeros_like(streams)

    def hold(self, token: Tensor, finite: Tensor) -> Tensor:
        """Repeat the stop token of stopped sequences, whose logits no longer matter."""
        if self.ids is None:
            return token
        finite |= self.stopped
        self.last = torch.where(self.stopped, self.last, token)
        self.stopped |= torch.isin(self.last, self.ids)
        return self.last

    def all_stopped(self, step: int) -> bool:
        """Whether every sequence has stopped; looks only at some steps."""
        if self.ids is None or (step + 1) % _STOP_CHECK_EVERY:
            return False
        return bool(self.stopped.all())


def _check_finite(tokens: Tensor, finite: Tensor) -> None:
    """Check all steps of a batch at once, so that the loop itself never waits for the device."""
    finite = finite.cpu()
    if not finite.all():
        bad = (~finite).any(dim=1).nonzero().flatten().tolist()
        raise NotFiniteError(tokens, {image: int((~finite[image]).nonzero()[0]) for image in bad})


def _round_up(slots: int) -> int:
    return math.ceil(slots / COMPILED_BUCKET) * COMPILED_BUCKET


class _Batch(NamedTuple):
    """The branches of every distinct prompt, left-padded to one length."""

    input_ids: Tensor
    """Int64 ``(branches * prompts, length)``: all conditional branches first."""
    attention_mask: Tensor
    """Bool, same shape; False at the padding."""
    rows: Tensor
    """Row of ``input_ids`` that each row of the loop starts from, int64
    ``(branches * sequences,)``."""


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Left-pad rows of token ids to one length: int64 ids, and a bool mask, False at padding."""
    length = max(map(len, rows))
    input_ids = [[pad_token_id] * (length - len(ids)) + list(ids) for ids in rows]
    attention_mask = [[False] * (length - len(ids)) + [True] * len(ids) for ids in rows]
    return torch.tensor(input_ids), torch.tensor(attention_mask)


def _pad_branches(prompts: Sequence[Branches], device: torch.device) -> _Batch:
    hashable = [tuple(map(tuple, branches)) for branches in prompts]
    places = {branches: place for place, branches in enumerate(dict.fromkeys(hashable))}
    input_ids, attention_mask = pad_left([ids for branch in zip(*places) for ids in branch], 0)
    rows = torch.tensor([places[branches] for branches in hashable])
    rows = torch.cat([rows + branch * len(places) for branch in range(len(prompts[0]))])
    return _Batch(input_ids.to(device), attention_mask.to(device), rows.to(device))


def _prefill(decoder: Decoder, batch: _Batch, cache: KVCache) -> Tensor:
    """Run every branch of each distinct prompt once, then give each sequence its rows."""
    valid = batch.attention_mask
    length = valid.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=valid.device)  # or padding sees nothing
    states = forward_layers(
        decoder,
        decoder.language_model.embed_tokens(batch.input_ids),
        (causal & valid[:, None, None, :]) | itself,
        (valid.cumsum(dim=1) - 1).clamp(min=0),
        PrefillView(cache, batch.rows),
    )
    return states[:, batch.rows]
