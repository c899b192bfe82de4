"""The token loop: prefill every prompt once, then one image token a step for the whole batch.

Rows are the conditional branches of all images first, then the unconditional ones in the same
order. The unconditional branch of a prompt has the prompt's own length: everything between its
first token (BOS) and its last (begin of image) is replaced by the pad token, and is attended to,
as in DeepSeek's ``generation_inference.py``. Left padding, which only aligns prompts of different
length, is masked out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaModel

from lit_dola.guidance import HeadPolicy, classifier_free_guidance, guided_dola
from lit_dola.sampling import gumbel_noise, sample, stream_keys


class Backbone(Protocol):
    """What the loop needs of a Janus, whoever wrote its code."""

    language_model: LlamaModel
    gen_head: nn.Module
    num_image_tokens: int
    pad_token_id: int

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


@torch.inference_mode()
def generate_image_tokens(
    janus: Backbone,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[ImageKey],
    config: DecodingConfig,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw the tokens of a batch of images.

    Args:
        janus: The model.
        prompts: Token ids of each image's prompt, from BOS to begin of image.
        keys: The random stream of each image.
        config: Settings of the loop.
        on_step: Called after each step with the number of tokens that every image has by then.

    Returns:
        Image tokens, int64 ``(images, num_image_tokens)``.
    """
    device = janus.language_model.embed_tokens.weight.device
    prompt_index, image_index = torch.tensor(keys, device=device).unbind(dim=1)
    streams = stream_keys(config.seed, prompt_index, image_index)
    rows = _prefill(janus, prompts, config)
    tokens: list[Tensor] = []
    for step in range(janus.num_image_tokens):
        if tokens:
            rows.advance(janus, janus.embed_image_tokens(tokens[-1].repeat(2)), config)
        scores = _scores(janus.gen_head(rows.states), config)
        token = sample(
            scores,
            gumbel_noise(streams, step, scores.shape[-1]),
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )
        tokens.append(token)
        if on_step is not None:
            on_step(len(tokens))
    return torch.stack(tokens, dim=1)


@dataclass
class _Rows:
    """Where the decoding of both branches of every image stands."""

    states: Tensor
    """``(1, rows, hidden)``: the last position after the final norm; with DoLa ``(2, ...)``, the
    middle layer's behind it."""
    past_key_values: DynamicCache
    attention_mask: Tensor | None
    """``(rows, length)``, 0 at left padding; None where no row is padded."""
    position_ids: Tensor
    """Position of the next token, ``(rows, 1)``."""

    def advance(self, janus: Backbone, inputs_embeds: Tensor, config: DecodingConfig) -> None:
        """Append one token, ``(rows, hidden)``, to every row."""
        if self.attention_mask is not None:
            self.attention_mask = nn.functional.pad(self.attention_mask, (0, 1), value=1)
        self.states = _forward(
            janus.language_model,
            inputs_embeds[:, None],
            self.attention_mask,
            self.position_ids,
            self.past_key_values,
            config,
        )
        self.position_ids = self.position_ids + 1


def _prefill(janus: Backbone, prompts: Sequence[Sequence[int]], config: DecodingConfig) -> _Rows:
    """Run each distinct prompt's two branches once, then give every image its two rows."""
    unique = list(dict.fromkeys(map(tuple, prompts)))
    input_ids, attention_mask = _pad_cfg_pairs(unique, janus.pad_token_id)
    weight = janus.language_model.embed_tokens.weight
    input_ids, attention_mask = input_ids.to(weight.device), attention_mask.to(weight.device)
    padded = len({len(prompt) for prompt in unique}) > 1
    cache = DynamicCache()
    states = _forward(
        janus.language_model,
        janus.language_model.embed_tokens(input_ids),
        attention_mask if padded else None,
        (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        cache,
        config,
    )
    place = {prompt: i for i, prompt in enumerate(unique)}
    cond = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=weight.device)
    rows = torch.cat([cond, cond + len(unique)])
    cache.batch_select_indices(rows)
    attention_mask = attention_mask[rows]
    return _Rows(
        states=states[:, rows],
        past_key_values=cache,
        attention_mask=attention_mask if padded else None,
        position_ids=attention_mask.sum(dim=1, keepdim=True),
    )


def _pad_cfg_pairs(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Both branches of every prompt, padded on the left to one length.

    Returns:
        Token ids and attention mask, int64 ``(2 * prompts, length)``: the conditional branches,
        then the unconditional ones.
    """
    uncond = [(ids[0], *[pad_token_id] * (len(ids) - 2), ids[-1]) for ids in prompts]
    branches = [*prompts, *uncond]
    length = max(map(len, branches))
    input_ids = [[pad_token_id] * (length - len(ids)) + list(ids) for ids in branches]
    attention_mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in branches]
    return torch.tensor(input_ids), torch.tensor(attention_mask)


def _forward(
    language_model: LlamaModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    past_key_values: DynamicCache,
    config: DecodingConfig,
) -> Tensor:
    """One pass of the language model; the states that :class:`_Rows` keeps.

    Of the middle layer only the last position is kept, by a hook on that one layer.
    """
    mid_state: list[Tensor] = []
    hooks = []
    if config.layer is not None:
        # hidden_states[0] is the embedding, so entry j is what layer j - 1 puts out.
        layer = language_model.layers[config.layer - 1]
        hooks.append(
            layer.register_forward_hook(lambda _module, _args, out: mid_state.append(out[:, -1]))
        )
    try:
        outputs = language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=True,
        )
    finally:
        for hook in hooks:
            hook.remove()
    if config.mid_norm:
        mid_state = [language_model.norm(state) for state in mid_state]
    return torch.stack([outputs.last_hidden_state[:, -1], *mid_state])


def _scores(logits: Tensor, config: DecodingConfig) -> Tensor:
    """Fuse the logits of both branches, ``(1 or 2, 2 * batch, vocab)``, to ``(batch, vocab)``."""
    (cond_final, uncond_final), *mid = (layer.chunk(2) for layer in logits)
    if not mid:
        return classifier_free_guidance(cond_final, uncond_final, config.cfg_weight)
    cond_mid, uncond_mid = mid[0]
    return guided_dola(
        cond_final,
        uncond_final,
        cond_mid,
        uncond_mid,
        alpha=config.alpha,
        cfg_weight=config.cfg_weight,
        head=config.head,
    )
