"""The ways to draw image tokens that are measured against one another."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.models import PAD, make_scoring, set_transformers_length
from lit_dola.decoding.loop import TokenGenerator, cfg_pair
from lit_dola.decoding.scoring import Scoring
from lit_dola.dola import contrast_with_apc_from_logits, pick_static_layer_index
from lit_dola.janus.model import TransformersJanus
from lit_dola.janus.packing import pack_weights, unpack_weights

Method = Callable[[int], Tensor]
"""Draws so many tokens of every image, ``(images, tokens)``."""

NAMES = {
    "a": "transformers generate, a prompt at a time",
    "a_batch": "transformers generate, all prompts at once",
    "b": "plain loop with DoLa, a prompt at a time",
    "c": "lit-dola, DoLa off",
    "d": "lit-dola, DoLa on",
    "e": "lit-dola, strength 0.2, mid_norm",
    "f": "lit-dola, strength 0: the head set alone",
    "g": "lit-dola, DoLa off, weights not packed",
    "h": "lit-dola, DoLa on, no guidance: one row per image",
    "i": "lit-dola, led away from a lensed layer, no guidance: one row per image",
    "j": "lit-dola, DoLa off, with log-probabilities",
    "k": "lit-dola, DoLa on, with log-probabilities",
}

PACKED = ("c", "d", "e", "f", "h", "i", "j", "k")
"""Methods that run on packed weights on a CPU."""


def make_methods(
    janus: TransformersJanus, prompts: list[list[int]], images: int, compile: bool
) -> dict[str, Method]:
    """Return each method by its letter; each draws ``len(prompts) * images`` images."""
    layer = middle_layer(janus)

    def each(run: Callable[[list[int], int], Tensor]) -> Method:
        return lambda tokens: torch.cat([run(ids, tokens) for ids in prompts])

    return {
        "a": each(lambda ids, tokens: _transformers(janus, [ids], images, tokens)),
        "a_batch": lambda tokens: _transformers(janus, prompts, images, tokens),
        "b": each(lambda ids, tokens: _plain_loop(janus, ids, images, layer, tokens)),
        "c": lit_dola(janus, prompts, images, None, compile),
        "d": lit_dola(janus, prompts, images, layer, compile),
        "e": lit_dola(
            janus, prompts, images, layer, compile, make_scoring(strength=0.2, mid_norm=True)
        ),
        "f": lit_dola(janus, prompts, images, layer, compile, make_scoring(strength=0.0)),
        "g": lit_dola(janus, prompts, images, None, compile),
        "h": lit_dola(janus, prompts, images, layer, compile, make_scoring(cfg_weight=1.0)),
        "i": lit_dola(
            janus, prompts, images, layer, compile,
            make_scoring(cfg_weight=1.0, contrast="guide"), random_lens(janus),
        ),
        "j": lit_dola(janus, prompts, images, None, compile, logprobs=True),
        "k": lit_dola(janus, prompts, images, layer, compile, logprobs=True),
    }  # fmt: skip


def prepare(janus: TransformersJanus, name: str, compile: bool) -> None:
    """Pack the weights on a CPU for lit-dola's methods, as a run does, and only for them."""
    if name in PACKED and not compile:
        pack_weights(janus)
    else:
        unpack_weights(janus)


def lit_dola(
    janus: TransformersJanus,
    prompts: list[list[int]],
    images: int,
    layer: int | None,
    compile: bool,
    scoring: Scoring | None = None,
    lens: nn.Linear | None = None,
    logprobs: bool = False,
) -> Method:
    """Return lit-dola's token loop as a method; it is set up once per number of tokens."""
    keys = [(i, j) for i in range(len(prompts)) for j in range(images)]
    scoring = scoring or make_scoring()
    rows = 2 if scoring.uses_guidance else 1
    branches = [cfg_pair(prompts[prompt], PAD)[:rows] for prompt, _ in keys]

    @cache
    def generator(tokens: int) -> TokenGenerator:
        return TokenGenerator(
            janus,
            janus.image_head,
            scoring,
            layer=layer,
            max_new_tokens=tokens,
            compile=compile,
            lens=lens,
            logprobs=logprobs,
        )

    return lambda tokens: generator(tokens)(branches, keys)


def random_lens(janus: TransformersJanus) -> nn.Linear:
    """Return a readout with random weights: a trained one takes as long."""
    weight = janus.language_model.embed_tokens.weight
    size = weight.shape[1]
    lens = nn.Linear(size, size, device=weight.device, dtype=weight.dtype)
    return lens.requires_grad_(False)


def middle_layer(janus: TransformersJanus) -> int:
    """Return the layer that the default ratio of 0.8 picks."""
    return pick_static_layer_index(len(janus.language_model.layers) + 1, True)


def _transformers(
    janus: TransformersJanus, prompts: list[list[int]], images: int, tokens: int
) -> Tensor:
    set_transformers_length(janus, tokens)
    input_ids = torch.tensor(prompts, device=janus.language_model.embed_tokens.weight.device)
    return janus.model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_mode="image",
        do_sample=True,
        guidance_scale=5.0,
        top_k=0,  # by default it draws from the 50 most probable tokens only
        num_return_sequences=images,
    )


@torch.inference_mode()
def _plain_loop(
    janus: TransformersJanus, input_ids: list[int], images: int, layer: int, num_tokens: int
) -> Tensor:
    """Draw one prompt as the old script does: a growing cache, every hidden state kept."""
    language_model = janus.language_model
    rows = torch.tensor(
        [input_ids] * (2 * images), device=language_model.embed_tokens.weight.device
    )
    rows[1::2, 1:-1] = PAD
    inputs_embeds = language_model.embed_tokens(rows)
    tokens, past_key_values = [], None
    for _ in range(num_tokens):
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
        inputs_embeds = janus.image_head.embed(token.repeat_interleave(2))[:, None]
    return torch.stack(tokens, dim=1)
