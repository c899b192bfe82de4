"""Where DoLa changed a picture: what happened at each step of an image that is drawn already.

The tokens are read once more, all steps in one forward pass, so that the token loop needs to keep
nothing. In low precision its arithmetic may differ from the loop's in the last bit.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_dola.decoding import Backbone, DecodingConfig, ImageKey, unconditional_ids
from lit_dola.dola import apc_head
from lit_dola.guidance import allowed_tokens, classifier_free_guidance, guided_dola
from lit_dola.sampling import gumbel_noise, sample, stream_keys

_STEPS_AT_ONCE = 64


class Inspection(NamedTuple):
    """What happened at each step, ``(num_image_tokens,)``, on the CPU."""

    token: Tensor
    """The token that was drawn, int32."""
    baseline_token: Tensor
    """The token that the baseline would have drawn here, after the same tokens and from the same
    noise, int32."""
    head_size: Tensor
    """Tokens that may be drawn, int32; for the policy ``seed`` the conditional head set's."""
    divergence: Tensor
    """Jensen-Shannon divergence of final and middle distribution, conditional branch, float32 nats.

    What DoLa itself measures layers by (Chuang et al. 2024, section 2.2); at most ln 2.
    """
    entropy_before: Tensor
    """Entropy of what the baseline would draw from (guidance and temperature), float32 nats."""
    entropy_after: Tensor
    """The same with DoLa."""


@torch.no_grad()
def inspect_tokens(
    janus: Backbone,
    config: DecodingConfig,
    input_ids: list[int],
    tokens: Tensor,
    key: ImageKey,
) -> Inspection:
    """Read an image's tokens once more.

    Args:
        janus: The model that drew them.
        config: Settings that they were drawn with; DoLa must be on.
        input_ids: Token ids of the prompt, from BOS to begin of image.
        tokens: The image's tokens, ``(num_image_tokens,)``.
        key: The random stream that they were drawn from.
    """
    device = janus.language_model.embed_tokens.weight.device
    tokens = tokens.to(device, torch.long)
    states = _hidden_states(janus, config, input_ids, tokens)
    stream = stream_keys(config.seed, *(torch.tensor([part], device=device) for part in key))
    steps = torch.arange(len(tokens), device=device)
    parts = []
    for part in steps.split(_STEPS_AT_ONCE):
        logits = janus.vision_head(janus.head_features(states[:, :, part])).float()
        noise = gumbel_noise(stream, part, logits.shape[-1])
        parts.append(_inspect_logits(logits, noise, config))
    found = [torch.cat(values).cpu() for values in zip(*parts)]
    return Inspection(tokens.to("cpu", torch.int32), *found)


def _hidden_states(
    janus: Backbone, config: DecodingConfig, input_ids: list[int], tokens: Tensor
) -> Tensor:
    """Final and middle state of both branches that each token is drawn from.

    Returns:
        ``(2 layers, 2 branches, num_image_tokens, hidden)``.
    """
    assert config.layer is not None
    language_model = janus.language_model
    branches = [input_ids, unconditional_ids(input_ids, janus.pad_token_id)]
    text = language_model.embed_tokens(torch.tensor(branches, device=tokens.device))
    drawn = janus.embed_image_tokens(tokens[:-1]).expand(2, -1, -1)
    output = language_model(
        inputs_embeds=torch.cat([text, drawn.to(text.dtype)], dim=1),
        use_cache=False,
        output_hidden_states=True,
    )
    mid = output.hidden_states[config.layer]
    if config.mid_norm:
        mid = language_model.norm(mid)
    return torch.stack([output.last_hidden_state, mid])[:, :, -len(tokens) :]


def _inspect_logits(logits: Tensor, noise: Tensor, config: DecodingConfig) -> tuple[Tensor, ...]:
    """The figures of a few steps, from logits ``(2 layers, 2 branches, steps, vocab)``."""
    (cond_final, uncond_final), (cond_mid, uncond_mid) = logits
    final, mid = cond_final.log_softmax(dim=-1), cond_mid.log_softmax(dim=-1)
    between = torch.logaddexp(final, mid) - math.log(2)
    both = torch.stack([final, mid])
    divergence = F.kl_div(between, both, log_target=True, reduction="none").sum(dim=-1).mean(dim=0)
    if config.head == "seed":
        allowed = apc_head(final, config.alpha)
    else:
        allowed = allowed_tokens(cond_final, uncond_final, config.alpha, config.head)
    before = classifier_free_guidance(cond_final, uncond_final, config.cfg_weight)
    after = guided_dola(
        cond_final, uncond_final, cond_mid, uncond_mid,
        alpha=config.alpha, cfg_weight=config.cfg_weight, head=config.head,
    )  # fmt: skip
    drawing = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p")}
    return (
        sample(before, noise, **drawing).to(torch.int32),
        allowed.sum(dim=-1, dtype=torch.int32),
        divergence,
        _entropy(before, config.temperature),
        _entropy(after, config.temperature),
    )


def _entropy(scores: Tensor, temperature: float) -> Tensor:
    """Nats of the distribution that is drawn from, before top-k and top-p; 0 where it is greedy."""
    if temperature == 0:
        return torch.zeros_like(scores[..., 0])
    return torch.special.entr((scores / temperature).softmax(dim=-1)).sum(dim=-1)
