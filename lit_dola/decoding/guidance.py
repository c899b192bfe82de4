"""Classifier-free guidance (CFG), and how it combines with DoLa's head sets.

Each branch, conditional and unconditional, has its own head set. Masking each branch with a large
negative number M and then fusing fails for a guidance scale w > 1: a token that is only in the
conditional head set scores about ``(w - 1) * |M|``, far above every token in both. So the unmasked
contrasts are fused first, and a policy then decides which tokens may be drawn.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from lit_dola.decoding.sampling import Sampling
from lit_dola.dola import (
    MASK_VALUE,
    apc_mask,
    at_least_float32,
    contrast_with_apc_from_logits,
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


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Settings of the contrast alone; :class:`lit_dola.LitDoLa` explains each field."""

    alpha: float
    strength: float
    mid_norm: bool

    @property
    def baseline(self) -> Self:
        """The same without DoLa: no head set, nothing subtracted."""
        return replace(self, alpha=0.0, strength=0.0)


@dataclass(frozen=True, kw_only=True)
class Scoring(Contrast, Sampling):
    """Settings that turn logits into a token; :class:`lit_dola.LitDoLa` explains each field.

    The module of a task creates it from its settings of the same names.

    Example:
        >>> LitDoLa(alpha=0.02, strength=0.2, cfg_weight=2.0).scoring
    """

    apc: ApcPolicy
    cfg_weight: float
    seed: int

    @property
    def uses_guidance(self) -> bool:
        """Return whether scores depend on the unconditional branch."""
        return self.cfg_weight != 1 or (self.alpha > 0 and self.apc != "cond")

    @property
    def contrast(self) -> dict[str, Any]:
        """The arguments that :func:`guided_dola` takes in both of its forms."""
        return {
            "alpha": self.alpha,
            "cfg_weight": self.cfg_weight,
            "apc": self.apc,
            "strength": self.strength,
        }


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
) -> Tensor:
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
        per row, which does not affect sampling.

    Raises:
        ValueError: As :func:`guided_dola`.
    """
    if apc == "per_branch":  # masking before the fusion makes it nonlinear
        (cond_final, uncond_final), (cond_mid, uncond_mid) = linear(torch.stack([final, mid]))
        return guided_dola(
            cond_final, uncond_final, cond_mid, uncond_mid,
            alpha=alpha, cfg_weight=cfg_weight, apc=apc, strength=strength,
        )  # fmt: skip
    contrast = final.float() - strength * mid.float()
    guided = classifier_free_guidance(contrast[0], contrast[1], cfg_weight)
    finals = final[:1] if apc == "cond" else final
    logits = linear(torch.cat([finals, guided[None].to(final.dtype)]))
    allowed = allowed_tokens(logits[0], logits[-2], alpha, apc)
    return _mask_scores(logits, allowed, linear.bias, strength)


def dola_from_features(
    final: Tensor, mid: Tensor, linear: nn.Linear, *, alpha: float, strength: float = 1.0
) -> Tensor:
    """Compute DoLa-static for one branch before the vocabulary, without guidance.

    Args:
        final: Input of ``linear`` for the final layer, ``(rows, features)``.
        mid: The same for the middle layer.
        linear: The head's last linear layer.
        alpha: Threshold of the head set, ``0 <= alpha <= 1``.
        strength: How much of the middle layer is subtracted, ``0 <= strength <= 1``.

    Returns:
        Float32 scores ``(rows, vocab)``, ``-inf`` outside the head set, equal to those of
        :func:`lit_dola.dola.contrast_with_apc_from_logits` up to a constant per row.

    Raises:
        ValueError: If ``alpha`` is not in [0, 1].
    """
    contrast = (final.float() - strength * mid.float()).to(final.dtype)
    logits = linear(torch.stack([final, contrast]))
    return _mask_scores(logits, apc_mask(logits[0].float(), alpha), linear.bias, strength)


def score_features(features: Tensor, linear: nn.Linear, scoring: Scoring) -> Tensor:
    """Score the next token of every sequence, before the vocabulary: the form that decoding uses.

    Args:
        features: Input of ``linear``, ``(layers, branches, sequences, features)``: the final layer,
            and the middle one unless the strength is 0; the conditional branch, with guidance also
            the unconditional one.
        linear: The head's last linear layer.
        scoring: The settings.

    Returns:
        Scores ``(sequences, vocab)``, float32 unless the strength is 0.
    """
    if scoring.strength == 0:
        return _score_without_mid(linear(features[0]), scoring)
    final, mid = features
    if len(final) == 1:
        return dola_from_features(
            final[0], mid[0], linear, alpha=scoring.alpha, strength=scoring.strength
        )
    return guided_dola_from_features(final, mid, linear, **scoring.contrast)


def score_logits(logits: Tensor, scoring: Scoring) -> Tensor:
    """Score tokens from logits of both branches: the form that inspection uses.

    Args:
        logits: ``(layers, branches, ..., vocab)``: the final layer, and the middle one unless the
            strength is 0; the conditional branch, with guidance also the unconditional one.
        scoring: The settings.

    Returns:
        Scores ``(..., vocab)``.
    """
    if scoring.strength == 0:
        return _score_without_mid(logits[0], scoring)
    if logits.shape[1] == 1:
        return contrast_with_apc_from_logits(
            logits[0, 0], logits[1, 0], scoring.alpha, scoring.strength, float("-inf")
        )
    (cond_final, uncond_final), (cond_mid, uncond_mid) = logits
    return guided_dola(cond_final, uncond_final, cond_mid, uncond_mid, **scoring.contrast)


def _score_without_mid(logits: Tensor, scoring: Scoring) -> Tensor:
    """Score tokens at strength 0: the baseline's own scores, cut to the head set.

    Args:
        logits: Final-layer logits, ``(branches, ..., vocab)``.
        scoring: The settings.

    Returns:
        Scores ``(..., vocab)`` in the dtype of the logits.
    """
    guided = len(logits) == 2
    if guided and scoring.apc == "per_branch" and scoring.alpha > 0:
        cond, uncond = logits
        return guided_dola(cond, uncond, cond, uncond, **scoring.contrast)
    scores = logits[0]
    if guided:
        scores = classifier_free_guidance(scores, logits[1], scoring.cfg_weight)
    if scoring.alpha == 0:
        return scores
    if guided:
        allowed = allowed_tokens(logits[0], logits[1], scoring.alpha, scoring.apc)
    else:
        allowed = apc_mask(logits[0].float(), scoring.alpha)
    return scores.masked_fill(~allowed, float("-inf"))


def drawable_tokens(logits: Tensor, scoring: Scoring) -> Tensor:
    """Return which tokens DoLa may draw, from final-layer logits ``(2, ..., vocab)``, as bool.

    With ``per_branch``, which excludes no token for good, these are the tokens of the conditional
    head set.
    """
    apc = "cond" if scoring.apc == "per_branch" else scoring.apc
    return allowed_tokens(logits[0], logits[1], scoring.alpha, apc)


def _mask_scores(logits: Tensor, allowed: Tensor, bias: Tensor | None, strength: float) -> Tensor:
    """Mask the last entry of ``logits``, a contrast; the others only determined ``allowed``."""
    scores = logits[-1].float()
    if bias is not None:  # a share ``strength`` of it cancels in a contrast
        scores = scores - strength * bias.float()
    scores = scores.masked_fill(~allowed, float("-inf"))
    # A NaN in logits that only determine the head sets must not go unnoticed.
    sound = logits[:-1].amax(dim=-1, keepdim=True).isfinite().all(dim=0)
    return scores.masked_fill(~sound, float("nan"))
