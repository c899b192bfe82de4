"""Classifier-free guidance (CFG), and how it meets DoLa's head set.

Each branch, conditional and unconditional, has a head set of its own. Masking each branch with a
large negative number M and then fusing is broken for a guidance scale w > 1: a token in the
conditional head but not in the unconditional one scores about ``(w - 1) * |M|``, far above every
token in both. So the contrasts are fused unmasked, and a policy says which tokens may be drawn.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_dola.dola import MASK_VALUE, apc_head, log_contrast

HeadPolicy = Literal["cond", "intersection", "union", "seed"]
"""Which tokens may be drawn.

- ``cond``: those in the conditional branch's head set.
- ``intersection``: those in both head sets; where there is none, as ``cond``.
- ``union``: those in either head set.
- ``seed``: mask each branch with a finite M before fusing; the old script's literal reading, kept
  to reproduce its runs.
"""


def classifier_free_guidance(cond: Tensor, uncond: Tensor, cfg_weight: float) -> Tensor:
    """``uncond + cfg_weight * (cond - uncond)``, as in DeepSeek's ``generation_inference.py``.

    Args:
        cond: Scores of the conditional branch, ``(..., vocab)``.
        uncond: Scores of the unconditional branch, same shape.
        cfg_weight: Guidance scale; 1 gives ``cond``, 0 gives ``uncond``.
    """
    return uncond + cfg_weight * (cond - uncond)


def allowed_tokens(
    cond_final: Tensor, uncond_final: Tensor, alpha: float, head: HeadPolicy
) -> Tensor:
    """Who may be drawn: boolean mask ``(..., vocab)``, never empty.

    Args:
        cond_final: Final-layer logits of the conditional branch, ``(..., vocab)``.
        uncond_final: Final-layer logits of the unconditional branch; ``cond`` does not look at it.
        alpha: Threshold of the head sets, ``0 < alpha <= 1``.
        head: The policy, see :data:`HeadPolicy`.

    Raises:
        ValueError: If ``alpha`` is not in (0, 1], or ``head`` is none that masks after fusing.
    """
    in_cond = apc_head(cond_final.float(), alpha)
    if head == "cond":
        return in_cond
    in_uncond = apc_head(uncond_final.float(), alpha)
    if head == "union":
        return in_cond | in_uncond
    if head == "intersection":
        both = in_cond & in_uncond
        return both | (in_cond & ~both.any(dim=-1, keepdim=True))
    raise ValueError(f"head is {head!r}; expected one of {', '.join(get_args(HeadPolicy))}")


def guided_dola(
    cond_final: Tensor,
    uncond_final: Tensor,
    cond_mid: Tensor,
    uncond_mid: Tensor,
    *,
    alpha: float,
    cfg_weight: float,
    head: HeadPolicy = "cond",
) -> Tensor:
    """Fuse the DoLa contrasts of both branches under a head policy.

    Args:
        cond_final: Final-layer logits of the conditional branch, ``(..., vocab)``.
        uncond_final: Final-layer logits of the unconditional branch, same shape.
        cond_mid: Middle-layer logits of the conditional branch, same shape.
        uncond_mid: Middle-layer logits of the unconditional branch, same shape.
        alpha: Threshold of the head sets, ``0 < alpha <= 1``.
        cfg_weight: Guidance scale.
        head: Which tokens may be drawn, see :data:`HeadPolicy`.

    Returns:
        Float32 scores ``(..., vocab)``: at least one finite, ``-inf`` for tokens that may not be
        drawn; no NaN and no +inf, but for a row whose logits have one.

    Raises:
        ValueError: If ``alpha`` is not in (0, 1] or ``head`` is unknown.
    """
    cond, cond_log_probs = log_contrast(cond_final, cond_mid)
    uncond, uncond_log_probs = log_contrast(uncond_final, uncond_mid)
    if head == "seed":
        cond = cond.masked_fill(~apc_head(cond_log_probs, alpha), MASK_VALUE)
        uncond = uncond.masked_fill(~apc_head(uncond_log_probs, alpha), MASK_VALUE)
        return classifier_free_guidance(cond, uncond, cfg_weight)
    allowed = allowed_tokens(cond_log_probs, uncond_log_probs, alpha, head)
    scores = classifier_free_guidance(cond, uncond, cfg_weight)
    return scores.masked_fill(~allowed, float("-inf"))


def guided_dola_from_features(
    final: Tensor,
    mid: Tensor,
    vision_head: nn.Linear,
    *,
    alpha: float,
    cfg_weight: float,
    head: HeadPolicy = "cond",
) -> Tensor:
    """:func:`guided_dola` before the vocabulary: half as many rows are projected onto it.

    What a head ends with is linear, and so are a contrast of logits and its guidance. So the
    features are contrasted and fused, and one row an image is projected in place of four; one or
    two more say who may be drawn. In bfloat16 both ways round by about as much.

    Args:
        final: What ``vision_head`` is given for the final layer, ``(2, images, features)``: the
            conditional branches, then the unconditional ones.
        mid: The same for the middle layer.
        vision_head: The linear layer that the image head ends with.
        alpha: Threshold of the head sets, ``0 < alpha <= 1``.
        cfg_weight: Guidance scale.
        head: Which tokens may be drawn, see :data:`HeadPolicy`.

    Returns:
        Float32 scores ``(images, vocab)``, those of :func:`guided_dola` up to a constant a row,
        which no draw depends on.

    Raises:
        ValueError: As :func:`guided_dola`.
    """
    if head == "seed":  # the masks come before the fusion, which then is not linear
        (cond_final, uncond_final), (cond_mid, uncond_mid) = vision_head(torch.stack([final, mid]))
        return guided_dola(
            cond_final, uncond_final, cond_mid, uncond_mid,
            alpha=alpha, cfg_weight=cfg_weight, head=head,
        )  # fmt: skip
    contrast = final.float() - mid.float()
    guided = classifier_free_guidance(contrast[0], contrast[1], cfg_weight)
    finals = final[:1] if head == "cond" else final
    logits = vision_head(torch.cat([finals, guided[None].to(final.dtype)]))
    allowed = allowed_tokens(logits[0], logits[-2], alpha, head)
    scores = logits[-1].float()
    if vision_head.bias is not None:
        scores = scores - vision_head.bias.float()  # it cancels in a contrast
    scores = scores.masked_fill(~allowed, float("-inf"))
    # What is wrong with logits that only say who may be drawn must show as well.
    sound = logits[:-1].amax(dim=-1, keepdim=True).isfinite().all(dim=0)
    return scores.masked_fill(~sound, float("nan"))
