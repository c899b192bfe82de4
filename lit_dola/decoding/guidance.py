"""Classifier-free guidance (CFG), and how it combines with DoLa's head sets.

Each branch, conditional and unconditional, has its own head set. Masking each branch with a large
negative number M and then fusing fails for a guidance scale w > 1: a token that is only in the
conditional head set scores about ``(w - 1) * |M|``, far above every token in both. So the unmasked
contrasts are fused first, and a policy then decides which tokens may be drawn.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_dola.dola import (
    MASK_VALUE,
    apc_mask,
    at_least_float32,
    log_contrast,
)

ApcPolicy = Literal["cond", "intersection", "union", "per_branch"]
"""Policy for which tokens may be drawn when the head sets of the two branches differ.

- ``cond``: tokens in the conditional branch's head set.
- ``intersection``: tokens in both head sets; if there are none, as ``cond``.
- ``union``: tokens in either head set.
- ``per_branch``: mask each branch with a finite M before fusing, as the old script did; kept only
  to reproduce its runs.
"""


def classifier_free_guidance(cond: Tensor, uncond: Tensor, cfg_weight: float) -> Tensor:
    """Return ``uncond + cfg_weight * (cond - uncond)``, as DeepSeek's ``generation_inference.py``.

    Args:
        cond: Scores of the conditional branch, ``(..., vocab)``.
        uncond: Scores of the unconditional branch, same shape.
        cfg_weight: Guidance scale; 1 returns ``cond``, 0 returns ``uncond``.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance" (2022), section 3.2.
    """
    return uncond + cfg_weight * (cond - uncond)


def allowed_tokens(
    cond_final: Tensor, uncond_final: Tensor, alpha: float, apc: ApcPolicy
) -> Tensor:
    """Return which tokens may be drawn: bool mask ``(..., vocab)``, never empty.

    Args:
        cond_final: Final-layer logits of the conditional branch, ``(..., vocab)``.
        uncond_final: Final-layer logits of the unconditional branch; unused by ``cond``.
        alpha: Threshold of the head sets, ``0 <= alpha <= 1``.
        apc: The policy, see :data:`ApcPolicy`.

    Raises:
        ValueError: If ``alpha`` is not in [0, 1], or ``apc`` is not a policy that masks after
            fusing.
    """
    in_cond = apc_mask(at_least_float32(cond_final), alpha)
    if apc == "cond":
        return in_cond
    in_uncond = apc_mask(at_least_float32(uncond_final), alpha)
    if apc == "union":
        return in_cond | in_uncond
    if apc == "intersection":
        both = in_cond & in_uncond
        return both | (in_cond & ~both.any(dim=-1, keepdim=True))
    raise ValueError(f"apc is {apc!r}; expected one of {', '.join(get_args(ApcPolicy))}")


def guided_dola(
    cond_final: Tensor,
    uncond_final: Tensor,
    cond_mid: Tensor,
    uncond_mid: Tensor,
    *,
    alpha: float,
    cfg_weight: float,
    apc: ApcPolicy = "cond",
    strength: float = 1.0,
) -> Tensor:
    """Fuse the DoLa contrasts of both branches under a head-set policy.

    Args:
        cond_final: Final-layer logits of the conditional branch, ``(..., vocab)``.
        uncond_final: Final-layer logits of the unconditional branch, same shape.
        cond_mid: Middle-layer logits of the conditional branch, same shape.
        uncond_mid: Middle-layer logits of the unconditional branch, same shape.
        alpha: Threshold of the head sets, ``0 <= alpha <= 1``.
        cfg_weight: Guidance scale.
        apc: Which tokens may be drawn, see :data:`ApcPolicy`.
        strength: How much of the middle layer is subtracted, ``0 <= strength <= 1``.

    Returns:
        Float32 scores ``(..., vocab)``, at least one of them finite; ``-inf`` for tokens that may
        not be drawn. No NaN and no +inf, unless the row's logits contain one.

    Raises:
        ValueError: If ``alpha`` or ``strength`` is not in [0, 1], or ``apc`` is unknown.
    """
    cond, cond_log_probs = log_contrast(cond_final, cond_mid, strength)
    uncond, uncond_log_probs = log_contrast(uncond_final, uncond_mid, strength)
    if apc == "per_branch":
        cond = cond.masked_fill(~apc_mask(cond_log_probs, alpha), MASK_VALUE)
        uncond = uncond.masked_fill(~apc_mask(uncond_log_probs, alpha), MASK_VALUE)
        return classifier_free_guidance(cond, uncond, cfg_weight)
    allowed = allowed_tokens(cond_log_probs, uncond_log_probs, alpha, apc)
    scores = classifier_free_guidance(cond, uncond, cfg_weight)
    return scores.masked_fill(~allowed, float("-inf"))


def guided_dola_from_features(
    final: Tensor,
    mid: Tensor,
    linear: nn.Linear,
    *,
    alpha: float,
    cfg_weight: float,
    apc: ApcPolicy = "cond",
    strength: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`guided_dola` before the vocabulary, with half as many rows projected onto it.

    The head's last layer, the contrast and CFG are all linear, so we fuse features first and
    project one row per image instead of four; one or two more rows determine the head sets. In
    bfloat16 both orders lose about the same precision.

    Args:
        final: Input of ``linear`` for the final layer, ``(2, images, features)``: the conditional
            branches, then the unconditional ones.
        mid: The same for the middle layer.
        linear: The head's last linear layer.
        alpha: Threshold of the head sets, ``0 <= alpha <= 1``.
        cfg_weight: Guidance scale.
        apc: Which tokens may be drawn, see :data:`ApcPolicy`.
        strength: How much of the middle layer is subtracted, ``0 <= strength <= 1``.

    Returns:
        Float32 scores ``(images, vocab)``, equal to those of :func:`guided_dola` up to a constant
        per row, which does not affect sampling; and the final layer's logits of the conditional
        branches, ``(images, vocab)``.

    Raises:
        ValueError: As :func:`guided_dola`.
    """
    if apc == "per_branch":  # masking before the fusion makes it nonlinear
        (cond_final, uncond_final), (cond_mid, uncond_mid) = linear(torch.stack([final, mid]))
        scores = guided_dola(
            cond_final, uncond_final, cond_mid, uncond_mid,
            alpha=alpha, cfg_weight=cfg_weight, apc=apc, strength=strength,
        )  # fmt: skip
        return scores, cond_final
    contrast = final.float() - strength * mid.float()
    guided = classifier_free_guidance(contrast[0], contrast[1], cfg_weight)
    finals = final[:1] if apc == "cond" else final
    logits = linear(torch.cat([finals, guided[None].to(final.dtype)]))
    allowed = allowed_tokens(logits[0], logits[-2], alpha, apc)
    return _mask_scores(logits, allowed, linear.bias, strength), logits[0]


def dola_from_features(
    final: Tensor, mid: Tensor, linear: nn.Linear, *, alpha: float, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute DoLa-static for one branch before the vocabulary, without guidance.

    Args:
        final: Input of ``linear`` for the final layer, ``(rows, features)``.
        mid: The same for the middle layer.
        linear: The head's last linear layer.
        alpha: Threshold of the head set, ``0 <= alpha <= 1``.
        strength: How much of the middle layer is subtracted, ``0 <= strength <= 1``.

    Returns:
        Float32 scores ``(rows, vocab)``, ``-inf`` outside the head set, equal to those of
        :func:`lit_dola.dola.contrast_with_apc_from_logits` up to a constant per row; and the final
        layer's logits, ``(rows, vocab)``.

    Raises:
        ValueError: If ``alpha`` is not in [0, 1].
    """
    contrast = (final.float() - strength * mid.float()).to(final.dtype)
    logits = linear(torch.stack([final, contrast]))
    allowed = apc_mask(logits[0].float(), alpha)
    return _mask_scores(logits, allowed, linear.bias, strength), logits[0]


def guide_by_layer(
    final: Tensor,
    cond_mid: Tensor,
    *,
    alpha: float,
    cfg_weight: float,
    beta: float,
    apc: ApcPolicy = "cond",
) -> Tensor:
    """Guide the final layer away from a middle one, on top of classifier-free guidance.

    Scores are ``G + beta * (log q_final - log q_middle)`` of the conditional branch on its head
    set, where G is the guided log-probabilities, without guidance those of the only branch.

    Source: autoguidance (Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself",
    arXiv 2406.02507, 2024), with an earlier layer of the model itself as the weaker model.

    Args:
        final: Final-layer logits, ``(branches, ..., vocab)``: the conditional branch, with guidance
            also the unconditional one.
        cond_mid: Middle-layer logits of the conditional branch, ``(..., vocab)``.
        alpha: Threshold of the head sets, ``0 <= alpha <= 1``.
        cfg_weight: Guidance scale.
        beta: How much the difference of the layers counts, 0 or more.
        apc: Which tokens may be drawn, all but ``per_branch``.

    Returns:
        Float32 scores ``(..., vocab)``, ``-inf`` for tokens that may not be drawn.

    Raises:
        ValueError: If ``alpha`` is not in [0, 1], or ``apc`` is another policy.
    """
    log_probs = at_least_float32(final).log_softmax(dim=-1)
    cond, gained = log_probs[0], log_contrast(final[0], cond_mid)[0]
    guided = classifier_free_guidance(cond, log_probs[-1], cfg_weight)
    allowed = allowed_tokens(final[0], final[-1], alpha, apc)
    return (guided + beta * gained).masked_fill(~allowed, float("-inf"))


def guide_from_features(
    final: Tensor,
    cond_mid: Tensor,
    linear: nn.Linear,
    *,
    alpha: float,
    cfg_weight: float,
    beta: float,
    apc: ApcPolicy = "cond",
) -> tuple[Tensor, Tensor]:
    """Compute :func:`guide_by_layer` before the vocabulary, where all of it is linear.

    Args:
        final: Input of ``linear`` for the final layer, ``(branches, rows, features)``.
        cond_mid: The same for the middle layer of the conditional branch, ``(rows, features)``.
        linear: The head's last linear layer.
        alpha: Threshold of the head sets, ``0 <= alpha <= 1``.
        cfg_weight: Guidance scale.
        beta: How much the difference of the layers counts, 0 or more.
        apc: Which tokens may be drawn, all but ``per_branch``.

    Returns:
        Float32 scores ``(rows, vocab)``, equal to those of :func:`guide_by_layer` up to a constant
        per row; and the final layer's logits of the conditional branch, ``(rows, vocab)``.
    """
    cond, uncond = final[0].float(), final[-1].float()
    guided = classifier_free_guidance(cond, uncond, cfg_weight)
    guided = guided + beta * (cond - cond_mid.float())
    finals = final[:1] if apc == "cond" else final
    logits = linear(torch.cat([finals, guided[None].to(final.dtype)]))
    allowed = allowed_tokens(logits[0], logits[-2], alpha, apc)
    return _mask_scores(logits, allowed, None, 0.0), logits[0]


def _mask_scores(logits: Tensor, allowed: Tensor, bias: Tensor | None, strength: float) -> Tensor:
    """Mask the last entry of ``logits``, a contrast; the others only determined ``allowed``."""
    scores = logits[-1].float()
    if bias is not None:  # a share ``strength`` of it cancels in a contrast
        scores = scores - strength * bias.float()
    scores = scores.masked_fill(~allowed, float("-inf"))
    # A NaN in logits that only determine the head sets must not go unnoticed.
    sound = logits[:-1].amax(dim=-1, keepdim=True).isfinite().all(dim=0)
    return scores.masked_fill(~sound, float("nan"))
