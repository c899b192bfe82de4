"""Scoring: the settings that turn logits into a token, and the scores that they make of logits."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from torch import Tensor, nn

from lit_dola.decoding.guidance import (
    ApcPolicy,
    allowed_tokens,
    classifier_free_guidance,
    dola_from_features,
    guide_by_layer,
    guide_from_features,
    guided_dola,
    guided_dola_from_features,
)
from lit_dola.decoding.sampling import Sampling
from lit_dola.dola import apc_mask, contrast_with_apc_from_logits

ContrastForm = Literal["dola", "guide"]
"""Form of the contrast of the two layers.

- ``dola``: the middle layer is subtracted in both branches, then guidance follows.
- ``guide``: guidance comes first, and what the final layer of the conditional branch adds to its
  middle layer counts on top.
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

    @property
    def uses_mid(self) -> bool:
        """Return whether scores depend on the middle layer."""
        return self.strength > 0


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
    contrast: ContrastForm
    beta: float

    @property
    def baseline(self) -> Self:
        """The same without DoLa."""
        return replace(super().baseline, contrast="dola")

    @property
    def guides(self) -> bool:
        """Return whether the middle layer guides, rather than being subtracted in each branch."""
        return self.contrast == "guide"

    @property
    def uses_mid(self) -> bool:
        """Return whether scores depend on the middle layer."""
        # Not by super(): Dynamo, which traces this, gets another value from it (torch 2.13).
        return self.beta > 0 if self.guides else self.strength > 0

    @property
    def uses_guidance(self) -> bool:
        """Return whether scores depend on the unconditional branch."""
        return self.cfg_weight != 1 or (self.alpha > 0 and self.apc != "cond")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of :func:`guide_by_layer` or :func:`guided_dola`, by the form."""
        own = {"beta": self.beta} if self.guides else {"strength": self.strength}
        return {"alpha": self.alpha, "cfg_weight": self.cfg_weight, "apc": self.apc, **own}


def score_features(features: Tensor, linear: nn.Linear, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Score the next token of every sequence, before the vocabulary: the form that decoding uses.

    Args:
        features: Input of ``linear``, ``(layers, branches, sequences, features)``: the final layer,
            and the middle one if the scores depend on it; the conditional branch, with guidance
            also the unconditional one.
        linear: The head's last linear layer.
        scoring: The settings.

    Returns:
        Scores ``(sequences, vocab)``, float32 if they depend on the middle layer; and the model's
        own logits: the final layer's of the conditional branch, likewise.
    """
    if not scoring.uses_mid:
        logits = linear(features[0])
        return _score_without_mid(logits, scoring), logits[0]
    final, mid = features
    if scoring.guides:
        return guide_from_features(final, mid[0], linear, **scoring.arguments)
    if len(final) == 1:
        return dola_from_features(
            final[0], mid[0], linear, alpha=scoring.alpha, strength=scoring.strength
        )
    return guided_dola_from_features(final, mid, linear, **scoring.arguments)


def score_logits(logits: Tensor, scoring: Scoring) -> Tensor:
    """Score tokens from logits of both branches: the form that inspection uses.

    Args:
        logits: ``(layers, branches, ..., vocab)``: the final layer, and the middle one if the
            scores depend on it; the conditional branch, with guidance also the unconditional one.
        scoring: The settings.

    Returns:
        Scores ``(..., vocab)``.
    """
    if not scoring.uses_mid:
        return _score_without_mid(logits[0], scoring)
    if scoring.guides:
        return guide_by_layer(logits[0], logits[1, 0], **scoring.arguments)
    if logits.shape[1] == 1:
        return contrast_with_apc_from_logits(
            logits[0, 0], logits[1, 0], scoring.alpha, scoring.strength, float("-inf")
        )
    (cond_final, uncond_final), (cond_mid, uncond_mid) = logits
    return guided_dola(cond_final, uncond_final, cond_mid, uncond_mid, **scoring.arguments)


def _score_without_mid(logits: Tensor, scoring: Scoring) -> Tensor:
    """Score tokens without the middle layer: the baseline's own scores, cut to the head set.

    Args:
        logits: Final-layer logits, ``(branches, ..., vocab)``.
        scoring: The settings.

    Returns:
        Scores ``(..., vocab)`` in the dtype of the logits.
    """
    guided = len(logits) == 2
    if guided and scoring.apc == "per_branch" and scoring.alpha > 0:
        cond, uncond = logits
        return guided_dola(cond, uncond, cond, uncond, **scoring.arguments)
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
