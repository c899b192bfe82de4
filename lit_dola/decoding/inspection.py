"""Inspection of a generated image: figures for every step about what DoLa changed.

The tokens are read again, all steps in one forward pass, so the token loop does not have to keep
anything. In low precision the last bit may differ from the loop's.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_dola.decoding.loop import StreamKey
from lit_dola.decoding.prefill import Branches
from lit_dola.decoding.sampling import entropy_of, gumbel_noise, stream_keys, temper
from lit_dola.decoding.scoring import Scoring, drawable_tokens, score_logits
from lit_dola.decoding.step import read_mid
from lit_dola.janus.model import ImageBackbone

_STEPS_AT_ONCE = 64


class Inspection(NamedTuple):
    """Figures for every step, each ``(num_image_tokens,)``, on the CPU."""

    token: Tensor
    """The token that was drawn, int32."""
    baseline_token: Tensor
    """The token that the baseline would have drawn after the same tokens, from the same noise,
    int32."""
    head_size: Tensor
    """Tokens that may be drawn, int32; with ``per_branch``, those of the conditional head set."""
    divergence: Tensor
    """Jensen-Shannon divergence of the final and middle distributions, conditional branch, float32
    nats, at most ln 2: DoLa's own measure of layers (Chuang et al. 2024, section 2.2)."""
    entropy_before: Tensor
    """Entropy of the baseline's distribution after guidance and temperature, float32 nats."""
    entropy_after: Tensor
    """Entropy of DoLa's distribution, likewise."""


@torch.no_grad()
def inspect_tokens(
    janus: ImageBackbone,
    scoring: Scoring,
    layer: int,
    branches: Branches,
    tokens: Tensor,
    key: StreamKey,
    lens: nn.Linear | None = None,
) -> Inspection:
    """Read an image's tokens again and measure every step.

    Args:
        janus: The model that drew the tokens.
        scoring: The settings that they were drawn with.
        layer: Index of the middle layer in ``hidden_states``.
        branches: Token ids of both branches of the prompt, see
            :func:`lit_dola.decoding.loop.cfg_pair`.
        tokens: The image's tokens, ``(num_image_tokens,)``.
        key: The random stream that they were drawn from.
        lens: Readout that was trained for the middle layer.
    """
    device = janus.language_model.embed_tokens.weight.device
    tokens = tokens.to(device, torch.long)
    states = _hidden_states(janus, scoring, layer, branches, tokens, lens)
    stream = stream_keys(scoring.seed, *(torch.tensor([part], device=device) for part in key))
    steps = torch.arange(len(tokens), device=device)
    parts = []
    for first in range(0, len(steps), _STEPS_AT_ONCE):
        part = steps[first : first + _STEPS_AT_ONCE]
        logits = janus.image_head.logits(states[:, :, part]).float()
        noise = gumbel_noise(stream, part, logits.shape[-1])
        parts.append(_inspect_logits(logits, noise, scoring))
    found = [torch.cat(values).cpu() for values in zip(*parts)]
    return Inspection(tokens.to("cpu", torch.int32), *found)


def _hidden_states(
    janus: ImageBackbone,
    scoring: Scoring,
    layer: int,
    branches: Branches,
    tokens: Tensor,
    lens: nn.Linear | None,
) -> Tensor:
    """Return the final and middle states of both branches that each token is drawn from.

    Returns:
        ``(2 layers, 2 branches, num_image_tokens, hidden)``.
    """
    language_model = janus.language_model
    if len({*map(len, branches)}) > 1:
        each = [_hidden_states(janus, scoring, layer, (ids,), tokens, lens) for ids in branches]
        return torch.cat(each, dim=1)
    text = language_model.embed_tokens(torch.tensor(branches, device=tokens.device))
    drawn = janus.image_head.embed(tokens[:-1]).expand(len(branches), -1, -1)
    output = language_model(
        inputs_embeds=torch.cat([text, drawn.to(text.dtype)], dim=1),
        use_cache=False,
        output_hidden_states=True,
    )
    mid = read_mid(language_model, output.hidden_states[layer], scoring.mid_norm, lens)
    return torch.stack([output.last_hidden_state, mid])[:, :, -len(tokens) :]


def _inspect_logits(logits: Tensor, noise: Tensor, scoring: Scoring) -> tuple[Tensor, ...]:
    """Measure a few steps, from logits ``(2 layers, 2 branches, steps, vocab)``."""
    final, mid = logits[:, 0].log_softmax(dim=-1)  # of the conditional branch
    between = torch.logaddexp(final, mid) - math.log(2)
    both = torch.stack([final, mid])
    divergence = F.kl_div(between, both, log_target=True, reduction="none").sum(dim=-1).mean(dim=0)
    before, after = score_logits(logits, scoring.baseline), score_logits(logits, scoring)
    return (
        scoring.draw(before, noise).to(torch.int32),
        drawable_tokens(logits[0], scoring).sum(dim=-1, dtype=torch.int32),
        divergence,
        _entropy(before, scoring),
        _entropy(after, scoring),
    )


def _entropy(scores: Tensor, scoring: Scoring) -> Tensor:
    """Entropy in nats of the distribution before top-k, top-p and min-p; 0 if it is greedy."""
    if scoring.temperature == 0:
        return torch.zeros_like(scores[..., 0])
    return entropy_of(temper(scores, scoring.temperature, scoring.entropy_temperature))
