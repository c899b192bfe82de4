"""The four ways to draw image tokens that are measured against one another."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.models import PAD
from lit_dola.decoding import DecodingConfig, ImageKey, ImageTokenGenerator
from lit_dola.dola import contrast_with_apc_from_logits, pick_static_layer_index
from lit_dola.janus import TransformersJanus

Method = Callable[[], Tensor]
"""Draws the tokens of all images, ``(images, num_image_tokens)``."""

NAMES = {
    "a": "transformers generate, a prompt at a time",
    "a_batch": "transformers generate, all prompts at once",
    "b": "plain loop with DoLa, a prompt at a time",
    "c": "lit-dola, DoLa off",
    "d": "lit-dola, DoLa on",
}


def make_methods(
    janus: TransformersJanus, prompts: list[list[int]], images: int, compile: bool
) -> dict[str, Method]:
    """Each method by its letter: all do ``len(prompts) * images`` images."""
    layer = middle_layer(janus)
    keys = [ImageKey(i, j) for i in range(len(prompts)) for j in range(images)]
    input_ids = [prompts[key.prompt_index] for key in keys]

    def lit_dola(layer: int | None) -> Method:
        generate = ImageTokenGenerator(janus, DecodingConfig(layer=layer), compile=compile)
        return lambda: generate(input_ids, keys)

    return {
        "a": lambda: torch.cat([_transformers(janus, [ids], images) for ids in prompts]),
        "a_batch": lambda: _transformers(janus, prompts, images),
        "b": lambda: torch.cat([_plain_loop(janus, ids, images, layer) for ids in prompts]),
        "c": lit_dola(None),
        "d": lit_dola(layer),
    }


def middle_layer(janus: TransformersJanus) -> int:
    """The layer that the ratio of 0.8 picks."""
    return pick_static_layer_index(len(janus.language_model.layers) + 1, True)


def _transformers(janus: TransformersJanus, prompts: list[list[int]], images: int) -> Tensor:
    input_ids = torch.tensor(prompts, device=janus.language_model.embed_tokens.weight.device)
    return janus.model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_mode="image",
        do_sample=True,
        guidance_scale=5.0,
        num_return_sequences=images,
    )


@torch.inference_mode()
def _plain_loop(janus: TransformersJanus, input_ids: list[int], images: int, layer: int) -> Tensor:
    """One prompt, in the manner of the seed's script: a growing cache, every hidden state kept."""
    language_model = janus.language_model
    rows = torch.tensor(
        [input_ids] * (2 * images), device=language_model.embed_tokens.weight.device
    )
    rows[1::2, 1:-1] = PAD
    inputs_embeds = language_model.embed_tokens(rows)
    tokens, past_key_values = [], None
    for _ in range(janus.num_image_tokens):
        outputs = language_model(
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=True,
            output_hidden_states=True,
        )
        past_key_values = outputs.past_key_values
        final_logits = janus.gen_head(outputs.hidden_states[-1][:, -1])
        mid_logits = janus.gen_head(outputs.hidden_states[layer][:, -1])
        scores = contrast_with_apc_from_logits(final_logits, mid_logits, alpha=0.1)
        cond, uncond = scores[0::2], scores[1::2]
        probs = torch.softmax(uncond + 5.0 * (cond - uncond), dim=-1)
        token = torch.multinomial(probs, num_samples=1).squeeze(-1)
        tokens.append(token)
        inputs_embeds = janus.embed_image_tokens(token.repeat_interleave(2))[:, None]
    return torch.stack(tokens, dim=1)
