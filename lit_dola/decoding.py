"""The token loop: CFG-paired, DoLa-static decoding of image tokens for a whole batch.

Rows are the conditional branches of all images first, then the unconditional ones in the same
order. The unconditional branch of a prompt has the prompt's own length: everything between its
first token (BOS) and its last (begin of image) is replaced by the pad token, and is attended to,
as in DeepSeek's ``generation_inference.py``. Left padding, which only aligns prompts of different
length, is masked out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel

from lit_dola.cache import KVCache, PrefillView, StepView
from lit_dola.guidance import HeadPolicy, classifier_free_guidance, guided_dola_from_features
from lit_dola.sampling import gumbel_noise, sample, stream_keys

COMPILED_BUCKET = 64
"""A compiled step attends to a multiple of this many slots: a CUDA graph a multiple."""
_COMPILE_OPTIONS: dict[str, Any] = {
    "triton.cudagraphs": True,  # what mode="reduce-overhead" stands for
    # On the CPU, torch 2.13's vectorized argmax over a sum with int64 arithmetic in it gives
    # indices that are garbage; its scalar one is right.
    "cpp.simdlen": 1,
}


class Backbone(Protocol):
    """What the loop needs of a Janus, whoever wrote its code."""

    language_model: LlamaModel
    gen_head: nn.Module
    vision_head: nn.Linear
    """The linear layer that ``gen_head`` ends with."""
    num_image_tokens: int
    pad_token_id: int

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every weight."""

    def head_features(self, hidden_states: Tensor) -> Tensor:
        """``gen_head`` up to its linear layer: ``(..., hidden)`` to ``(..., features)``."""

    def embed_image_tokens(self, tokens: Tensor) -> Tensor:
        """``gen_embed`` and ``gen_aligner``: int64 ``(...,)`` to ``(..., hidden)``."""


class ImageKey(NamedTuple):
    """What sets one image apart from the others of a run: the key of its random stream."""

    prompt_index: int
    image_index: int


@dataclass(frozen=True)
class DecodingConfig:
    """Settings of the token loop; :class:`lit_dola.module.LitDoLa` explains each."""

    layer: int | None
    """Index of the middle layer in ``hidden_states``; None turns DoLa off."""
    alpha: float = 0.1
    mid_norm: bool = False
    head: HeadPolicy = "cond"
    cfg_weight: float = 5.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


class NotFiniteError(ArithmeticError):
    """Logits of some images are NaN or infinite.

    Args:
        tokens: What was drawn nevertheless, int64 ``(images, num_image_tokens)``; worthless for
            the images in ``steps`` from their step on, sound for all others.
        steps: Place in the batch of each image concerned, and its first such step.
    """

    def __init__(self, tokens: Tensor, steps: dict[int, int]) -> None:
        super().__init__(f"logits are NaN or infinite at the steps {steps}")
        self.tokens = tokens
        self.steps = steps


class ImageTokenGenerator:
    """Draws the tokens of batch after batch of images.

    Args:
        janus: The model.
        config: Settings of the loop.
        max_prompt_length: Token ids of the longest prompt to come. The cache grows where this is
            too small.
        compile: Whether the step is compiled, with CUDA graphs on a GPU. Every batch then takes
            as many rows as the largest before it, so that one compilation serves all.
    """

    def __init__(
        self,
        janus: Backbone,
        config: DecodingConfig,
        *,
        max_prompt_length: int = 0,
        compile: bool = False,
    ) -> None:
        self.janus = janus
        self.config = config
        self.max_prompt_length = max_prompt_length
        self.compile = compile
        self._cache: KVCache | None = None
        self._step = _step
        if compile:
            for weight in janus.parameters():  # else a CUDA graph would copy it at every step
                torch._dynamo.mark_static_address(weight, guard=False)
            self._step = torch.compile(_step, fullgraph=True, options=_COMPILE_OPTIONS)

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[ImageKey],
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draw the tokens of a batch of images.

        Args:
            prompts: Token ids of each image's prompt, from BOS to begin of image.
            keys: The random stream of each image.
            on_step: Called after each step with the number of tokens that every image has by
                then; they may still be on their way through the device.

        Returns:
            Image tokens, int64 ``(images, num_image_tokens)``.

        Raises:
            NotFiniteError: If the logits of an image are NaN or infinite at a step.
        """
        images = len(prompts)
        if self.compile and self._cache is not None:  # fill up with copies of the last image
            spare = self._cache.rows // 2 - images
            prompts, keys = [*prompts, *[prompts[-1]] * spare], [*keys, *[keys[-1]] * spare]
        janus, config = self.janus, self.config
        weight = janus.language_model.embed_tokens.weight
        batch = _pad_cfg_pairs(prompts, janus.pad_token_id, weight.device)
        cache = self._cache_for(batch)
        prompt_index, image_index = torch.tensor(keys, device=weight.device).unbind(dim=1)
        streams = stream_keys(config.seed, prompt_index, image_index)
        counter = torch.arange(cache.slots, device=weight.device)
        real = batch.attention_mask[batch.rows]
        prompt_lengths = real.sum(dim=1, keepdim=True)
        # To be added to attention scores: 0 where there is a token, -inf where there is none yet.
        attention_mask = weight.new_full((len(real), cache.slots), float("-inf"))
        attention_mask[:, : real.shape[1]].masked_fill_(real, 0.0)

        tokens = counter.new_empty(len(prompts), janus.num_image_tokens)
        finite = torch.ones_like(tokens, dtype=torch.bool)
        states = _prefill(janus, config, batch, cache)
        token, finite[:, 0] = _draw(janus, config, states, streams, counter[:1])
        for step in range(janus.num_image_tokens):
            if step > 0:
                slot = real.shape[1] + step - 1
                attention_mask[:, slot] = 0.0
                if self.compile:
                    torch.compiler.cudagraph_mark_step_begin()
                token, finite[:, step] = self._step(
                    janus, config, cache, token, streams, counter[step : step + 1],
                    counter[slot : slot + 1], prompt_lengths, self._attended(attention_mask, slot),
                )  # fmt: skip
                token = token.clone()  # the memory that a CUDA graph returns is its own
            tokens[:, step] = token
            if on_step is not None:
                on_step(step + 1)
        _check_finite(tokens[:images], finite[:images])
        return tokens[:images]

    def _attended(self, attention_mask: Tensor, slot: int) -> Tensor:
        """Mask of the slots that a step reads: up to its own, or some more if it is compiled."""
        if not self.compile:
            return attention_mask[:, None, None, : slot + 1]
        attention_mask = attention_mask[:, None, None, : _whole_buckets(slot + 1)]
        torch._dynamo.maybe_mark_dynamic(attention_mask, 3)  # not where there is one length only
        return attention_mask

    def _cache_for(self, batch: "_Batch") -> KVCache:
        """The cache of the batches before, where it is large enough."""
        rows, length = len(batch.rows), max(self.max_prompt_length, batch.input_ids.shape[1])
        slots = _whole_buckets(length + self.janus.num_image_tokens)
        if self._cache is None or rows > self._cache.rows or slots > self._cache.slots:
            self._cache = None  # free it first
            language_model = self.janus.language_model
            weight = language_model.embed_tokens.weight
            self._cache = KVCache(language_model.config, rows, slots, weight.dtype, weight.device)
        return self._cache


def _check_finite(tokens: Tensor, finite: Tensor) -> None:
    """Look at all steps of a batch at once: the loop itself never waits for the device."""
    finite = finite.cpu()
    if not finite.all():
        bad = (~finite).any(dim=1).nonzero().flatten().tolist()
        raise NotFiniteError(tokens, {image: int((~finite[image]).nonzero()[0]) for image in bad})


def _whole_buckets(slots: int) -> int:
    return math.ceil(slots / COMPILED_BUCKET) * COMPILED_BUCKET


class _Batch(NamedTuple):
    """Both branches of every distinct prompt, padded on the left to one length."""

    input_ids: Tensor
    """Int64 ``(2 * prompts, length)``: the conditional branches, then the unconditional ones."""
    attention_mask: Tensor
    """Bool, same shape; False at the padding."""
    rows: Tensor
    """Row of ``input_ids`` that each row of the loop starts from, int64 ``(2 * images,)``."""


def unconditional_ids(input_ids: Sequence[int], pad_token_id: int) -> tuple[int, ...]:
    """The tokens that stand for no prompt, as many as the prompt's; the first and last stay."""
    return (input_ids[0], *[pad_token_id] * (len(input_ids) - 2), input_ids[-1])


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids at one length: int64 ids, and the bool mask of what is no padding."""
    length = max(map(len, rows))
    input_ids = [[pad_token_id] * (length - len(ids)) + list(ids) for ids in rows]
    attention_mask = [[False] * (length - len(ids)) + [True] * len(ids) for ids in rows]
    return torch.tensor(input_ids), torch.tensor(attention_mask)


def _pad_cfg_pairs(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> _Batch:
    cond = list(dict.fromkeys(map(tuple, prompts)))
    uncond = [unconditional_ids(ids, pad_token_id) for ids in cond]
    input_ids, attention_mask = pad_left([*cond, *uncond], pad_token_id)
    place = {ids: i for i, ids in enumerate(cond)}
    rows = [place[tuple(ids)] for ids in prompts]
    rows += [row + len(cond) for row in rows]
    places = torch.tensor(rows, device=device)
    return _Batch(input_ids.to(device), attention_mask.to(device), places)


def _prefill(janus: Backbone, config: DecodingConfig, batch: _Batch, cache: KVCache) -> Tensor:
    """Run each distinct prompt's two branches once, then give every image its two rows."""
    valid = batch.attention_mask
    length = valid.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=valid.device)  # else padding sees nothing
    states = _forward(
        janus.language_model,
        config,
        janus.language_model.embed_tokens(batch.input_ids),
        (causal & valid[:, None, None, :]) | itself,
        (valid.cumsum(dim=1) - 1).clamp(min=0),
        PrefillView(cache, batch.rows),
    )
    return states[:, batch.rows]


def _step(
    janus: Backbone,
    config: DecodingConfig,
    cache: KVCache,
    token: Tensor,
    streams: Tensor,
    step: Tensor,
    slot: Tensor,
    prompt_lengths: Tensor,
    attention_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token more for every image: tensors of fixed shapes, and no wait for the device.

    Args:
        janus: The model.
        config: Settings of the loop.
        cache: Keys and values of all tokens before.
        token: The tokens drawn last, int64 ``(images,)``.
        streams: Random streams of the images, int64 ``(images,)``.
        step: Number of the token to draw, int64 ``(1,)``.
        slot: Slot of the cache that the last token goes to, int64 ``(1,)``.
        prompt_lengths: Tokens of each row's prompt, int64 ``(rows, 1)``.
        attention_mask: 0 for slots that are attended to, else -inf, ``(rows, 1, 1, length)``.

    Returns:
        As :func:`_draw`.
    """
    states = _forward(
        janus.language_model,
        config,
        janus.embed_image_tokens(token.repeat(2))[:, None],
        attention_mask,
        prompt_lengths + step - 1,
        StepView(cache, slot, *attention_mask.shape[::3]),
    )
    return _draw(janus, config, states, streams, step)


def _forward(
    language_model: LlamaModel,
    config: DecodingConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    past_key_values: PrefillView | StepView,
) -> Tensor:
    """Last position of the final hidden state, and of the middle one with DoLa.

    What ``LlamaModel`` does with its layers, less what it would keep of all the others.

    Returns:
        ``(1, rows, hidden)``, after the final norm; with DoLa ``(2, ...)``, the middle behind it.
    """
    hidden_states = inputs_embeds
    position_embeddings = language_model.rotary_emb(hidden_states, position_ids)
    mid_state: list[Tensor] = []
    # hidden_states[0] is the embedding, so entry j is what the j-th layer puts out.
    for index, layer in enumerate(language_model.layers, start=1):
        hidden_states = layer(
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            position_embeddings=position_embeddings,
        )
        if index == config.layer:
            mid_state.append(hidden_states[:, -1])
    if config.mid_norm:
        mid_state = [language_model.norm(state) for state in mid_state]
    return torch.stack([language_model.norm(hidden_states[:, -1]), *mid_state])


def _draw(
    janus: Backbone, config: DecodingConfig, states: Tensor, streams: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a token an image from the states of both of its rows, int64 ``(images,)``.

    Gives also whether the logits that it was drawn from are sound, bool ``(images,)``.
    """
    features = janus.head_features(states).unflatten(1, (2, -1))  # (layers, branches, images, ...)
    if config.layer is None:
        cond, uncond = janus.vision_head(features[0])
        scores = classifier_free_guidance(cond, uncond, config.cfg_weight)
    else:
        scores = guided_dola_from_features(
            features[0],
            features[1],
            janus.vision_head,
            alpha=config.alpha,
            cfg_weight=config.cfg_weight,
            head=config.head,
        )
    token = sample(
        scores,
        gumbel_noise(streams, step, scores.shape[-1]),
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
    )
    return token, scores.amax(dim=-1).isfinite()
