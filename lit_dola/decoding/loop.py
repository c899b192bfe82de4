"""The token loop: decodes a batch of sequences in step, each with one or two branches.

The branches of a sequence are rows next to each other, the conditional one first. Every row starts
at slot 0 of the cache and is as long as its own prompt and tokens, so what happens in a row does
not depend on its neighbours.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from lit_dola.decoding.cache import KVCache
from lit_dola.decoding.prefill import (
    Branches,
    PromptCache,
    longest_prompt,
    prefill,
    round_up,
    row_lengths,
)
from lit_dola.decoding.sampling import stream_keys
from lit_dola.decoding.scoring import Scoring
from lit_dola.decoding.step import (
    Decoder,
    Drawn,
    Step,
    compile_step,
    decode_window,
    draw,
    race,
    run_window,
)
from lit_dola.janus.model import Backbone, Head
from lit_dola.janus.tokenizer import unconditional_ids

ATTENDED_BUCKET = 64
"""A step attends to a multiple of this many slots. Otherwise the longest row would decide how the
sums of all others are rounded; compiled, there is one CUDA graph per multiple."""
_EXACT_BUCKET = 16
"""The same in float32 with the step as written: a multiple of what processors add up at once."""

StreamKey = tuple[int, int]
"""Prompt index and image index, which select a sequence's random stream."""
OnStep = Callable[[int, Tensor], None]
"""Takes how many tokens have been drawn per sequence, and the tokens, int64 ``(sequences, tokens)``
with -1 where there is none yet; the tensor changes with the next step."""


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


class StepError(RuntimeError):
    """The compiled step has failed; the step as written may not."""


def cfg_pair(
    input_ids: Sequence[int], pad_token_id: int, negative_ids: Sequence[int] | None = None
) -> Branches:
    """Return both branches of an image prompt for classifier-free guidance.

    Args:
        input_ids: Token ids of the prompt.
        pad_token_id: Replaces the text in the unconditional branch.
        negative_ids: Token ids of a negative prompt, which is the unconditional branch in its
            place, as in Emu3's ``inference.py`` (Wang et al. 2024).
    """
    if negative_ids is not None:
        return tuple(input_ids), tuple(negative_ids)
    return tuple(input_ids), unconditional_ids(input_ids, pad_token_id)


class TokenGenerator:
    """Draws the tokens of one batch of sequences after another, all of the same length.

    Args:
        janus: The model.
        head: Predicts and embeds the tokens: ``janus.image_head`` for images.
        scoring: How logits become tokens.
        layer: Index of the middle layer in ``hidden_states``; None turns DoLa off.
        max_new_tokens: Tokens to draw per sequence.
        max_prompt_length: Token ids of the longest prompt to come; the cache grows if a prompt is
            longer.
        compile: Whether to compile the step. Every batch then uses as many rows as the largest
            batch before it, so that one compilation serves all.
        graphs: Whether a compiled step uses CUDA graphs on a GPU.
        share_prefill: Whether the sequences of a prompt share one pass. Ranks that share a model
            must run the same number of passes, whatever prompts they have.
        fill_to: Sequences that a smaller batch is filled up to, with copies of its last one: a GPU
            chooses kernels, and with them the order of sums, by the number of rows.
        prior: Added to the scores of every token, float32 ``(vocab,)``.
        lens: Readout that was trained for the middle layer.
        logprobs: Measure the log-probability of each token; see :attr:`logprobs`.

    Example:
        >>> generate = TokenGenerator(
        ...     janus, janus.image_head, Scoring(alpha=0.1), layer=24, max_new_tokens=576
        ... )
        >>> tokens = generate([cfg_pair(input_ids, janus.pad_token_id)], [(0, 0)])
    """

    lookahead = 0
    """Slots that a row needs beyond its last token."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end a sequence."""
    forwards: Tensor | None = None
    """Passes that each sequence of the last batch took after its prefill, int64 ``(sequences,)``;
    None where it is always one per token."""
    logprobs: Tensor | None = None
    """Log-probabilities of the tokens of the last batch, float32 ``(2, sequences, tokens)``, as of
    :attr:`lit_dola.decoding.step.Drawn.logprobs`; None if they are not measured."""

    def __init__(
        self,
        janus: Backbone,
        head: Head,
        scoring: Scoring,
        *,
        layer: int | None,
        max_new_tokens: int,
        max_prompt_length: int = 0,
        compile: bool = False,
        graphs: bool = True,
        share_prefill: bool = True,
        fill_to: int = 1,
        prior: Tensor | None = None,
        lens: nn.Linear | None = None,
        logprobs: bool = False,
    ) -> None:
        self.decoder = Decoder.of(janus, head, scoring, layer, prior, lens, logprobs)
        self.max_new_tokens = max_new_tokens
        self.max_prompt_length = max_prompt_length
        self.compile = compile
        self._kept = PromptCache() if share_prefill else None
        self.fill_to = fill_to
        self._cache: KVCache | None = None
        self.graphs = graphs
        self._step: Step | None = None
        """The compiled step, once it is needed."""
        self._janus = janus

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Branches],
        keys: Sequence[StreamKey],
        on_step: OnStep | None = None,
        embeddings: Tensor | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Draw the tokens of a batch of sequences.

        Args:
            prompts: The branches of each sequence's prompt: one without guidance or two with it,
                the same number for all.
            keys: The random stream of each sequence.
            on_step: Called after each step with the number of tokens drawn per sequence so far, and
                the tokens; the device may still be computing them.
            embeddings: What negative token ids of prompts stand for, ``(rows, hidden)``.
            seeds: Seed of each sequence; None: ``scoring.seed`` for all.

        Returns:
            Token ids, int64 ``(sequences, max_new_tokens)``. A sequence that has stopped repeats
            its stop token; if all have stopped, there may be fewer columns.

        Raises:
            NotFiniteError: If a sequence's logits are NaN or infinite at some step.
            StepError: If the step is compiled, and fails.
        """
        count = len(prompts)
        spare = max(self.fill_to, self._compiled_for(len(prompts[0]))) - count
        prompts, keys = [*prompts, *[prompts[-1]] * spare], [*keys, *[keys[-1]] * spare]
        device = self.decoder.language_model.embed_tokens.weight.device
        prompt_index, image_index = torch.tensor(keys, device=device).unbind(dim=1)
        own = seeds or [self.decoder.scoring.seed]
        seed = prompt_index.new_tensor([*own, *[own[-1]] * (len(keys) - len(own))])
        streams = stream_keys(seed, prompt_index, image_index)
        report = on_step and (lambda step, tokens: on_step(step, tokens[:count]))
        tokens, finite, logprobs = self._decode(prompts, streams, embeddings, report)
        self.logprobs = logprobs[:, :count] if self.decoder.logprobs else None
        self._check_finite(tokens[:count], finite[:count])
        return tokens[:count]

    def _decode(
        self,
        prompts: Sequence[Branches],
        streams: Tensor,
        embeddings: Tensor | None,
        on_step: OnStep | None,
    ) -> Drawn:
        """Draw all tokens."""
        longest = longest_prompt(prompts)
        cache = self._cache_for(len(prompts) * len(prompts[0]), longest)
        states = prefill(self.decoder, prompts, cache, self._kept_for(embeddings), embeddings)
        drawn = draw(self.decoder, states, streams, torch.zeros_like(streams)[:, None])
        counter = torch.arange(cache.slots, device=streams.device)
        prompt_lengths = row_lengths(prompts, counter)
        tokens = counter.new_full((len(streams), self.max_new_tokens), -1)
        finite = torch.ones_like(tokens, dtype=torch.bool)
        logprobs = drawn.logprobs.new_empty(len(drawn.logprobs), *tokens.shape)
        token = drawn.tokens
        for step in range(self.max_new_tokens):
            if step > 0:
                drawn = self._run_step(
                    cache, token, streams, counter[None, step : step + 1], prompt_lengths,
                    self._attended(counter, longest + step),
                )  # fmt: skip
                token = drawn.tokens.clone()  # a CUDA graph reuses the memory that it returns
            finite[:, step], tokens[:, step] = drawn.finite[:, 0], token[:, 0]
            logprobs[:, :, step] = drawn.logprobs[:, :, 0]
            if on_step is not None:
                on_step(step + 1, tokens)
        return Drawn(tokens, finite, logprobs)

    def _kept_for(self, embeddings: Tensor | None) -> PromptCache | None:
        """Return the prompts that were run before; embeddings mean something in one call only."""
        return self._kept if self._kept is None or embeddings is None else PromptCache()

    def _run_step(self, *inputs: Any) -> Drawn:
        """Call :func:`decode_window`; compiled, what it returns lasts until the next call."""
        if not self.compile:
            return decode_window(self.decoder, *inputs)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            self._step = self._step or compile_step(self._weights(), self.graphs)
            drawn: Drawn = self._step(self.decoder, *inputs)
        except Exception as error:
            raise StepError(str(error)) from error
        return drawn

    def _weights(self) -> Iterator[Tensor]:
        yield from self._janus.parameters()
        if self.decoder.lens is not None:
            yield from self.decoder.lens.parameters()

    def as_written(self, max_new_tokens: int) -> Self:
        """Return a token loop with the same settings and the step as written.

        Args:
            max_new_tokens: Tokens to draw per sequence.
        """
        other = copy(self)
        other.max_new_tokens = max_new_tokens
        other.compile, other.fill_to, other._cache = False, 1, None
        return other

    @torch.no_grad()
    def race(
        self, prompts: Sequence[Branches], keys: Sequence[StreamKey], tokens: Tensor
    ) -> Tensor:
        """Return the values of all tokens at each draw, of which the largest is drawn.

        Args:
            prompts: The branches of each sequence's prompt.
            keys: The random stream of each sequence.
            tokens: The tokens that each draw follows, int64 ``(sequences, count)``.

        Returns:
            Float32 ``(sequences, count, vocab)``.
        """
        prompt_index, image_index = torch.tensor(keys, device=tokens.device).unbind(dim=1)
        seed = torch.full_like(prompt_index, self.decoder.scoring.seed)
        streams = stream_keys(seed, prompt_index, image_index)
        steps = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        values, *_ = race(self.decoder, self.states(prompts, tokens), streams, steps)
        return values.view(*tokens.shape, -1)

    @torch.no_grad()
    def states(
        self, prompts: Sequence[Branches], tokens: Tensor, window: int | None = None
    ) -> Tensor:
        """Return the states that each draw is made from, if it follows the given tokens.

        Args:
            prompts: The branches of each sequence's prompt.
            tokens: The first tokens of each sequence, int64 ``(sequences, count)``.
            window: Tokens per pass of the step as written; None: all in one pass.

        Returns:
            ``(layers, rows, count, hidden)``: the final hidden state, after the final norm, and the
            middle layer's if the scores need it.
        """
        decoder = self.decoder
        cache = self._cache_for(len(prompts) * len(prompts[0]), longest_prompt(prompts))
        places = torch.arange(tokens.shape[1] - 1, device=tokens.device)
        slots = torch.arange(cache.slots, device=tokens.device)
        own = row_lengths(prompts, places) + places
        inputs = tokens[:, :-1].repeat_interleave(len(prompts[0]), dim=0)
        states = [prefill(decoder, prompts, cache, self._kept)]
        width = window or max(1, len(places))
        for start in range(0, len(places), width):
            part = slice(start, start + width)
            states.append(run_window(decoder, cache, inputs[:, part], own[:, part], slots))
        return torch.cat(states, dim=2)

    def _compiled_for(self, branches: int) -> int:
        """Return how many sequences of so many branches the step is compiled for, if it is."""
        return self._cache.rows // branches if self.compile and self._cache is not None else 0

    def _attended(self, counter: Tensor, count: int) -> Tensor:
        """Slots that a step reads: those in use, and a few more."""
        exact = self.decoder.language_model.embed_tokens.weight.dtype.itemsize >= 4
        bucket = _EXACT_BUCKET if exact and not self.compile else ATTENDED_BUCKET
        slots = counter[: round_up(count, bucket)]
        if self.compile:
            torch._dynamo.maybe_mark_dynamic(slots, 0)  # unless there is only one length
        return slots

    def _cache_for(self, rows: int, prompt_length: int) -> KVCache:
        """Return the cache of earlier batches if it is large enough, else a new one.

        Args:
            rows: Rows that it needs.
            prompt_length: Token ids of the longest prompt.
        """
        length = max(self.max_prompt_length, prompt_length)
        slots = round_up(length + self.max_new_tokens + self.lookahead, ATTENDED_BUCKET)
        if self._cache is None or rows > self._cache.rows or slots > self._cache.slots:
            self._cache = None  # free it first
            language_model = self.decoder.language_model
            weight = language_model.embed_tokens.weight
            self._cache = KVCache(language_model.config, rows, slots, weight.dtype, weight.device)
        return self._cache

    def _check_finite(self, tokens: Tensor, finite: Tensor) -> None:
        """Check all steps of a batch at once: the loop itself never waits for the device."""
        finite = finite.cpu()
        if finite.all():
            return
        if self._cache is not None:
            self._cache.clear()
        bad = (~finite).any(dim=1).nonzero().flatten().tolist()
        raise NotFiniteError(tokens, {image: int((~finite[image]).nonzero()[0]) for image in bad})
