"""Classifier-free guidance (CFG), and how it meets DoLa's head set.

Each branch, conditional and unconditional, has a head set of its own. Masking each branch with a
large negative number M and then fusing is broken for a guidance scale w > 1: a token in the
conditional head but not in the unconditional one scores about ``(w - 1) * |M|``, far above every
token in both. So the contrasts are fused unmasked, and a policy says which tokens may be drawn.
"""

from typing import Literal, get_args

from torch import Tensor

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
        Float32 scores ``(..., vocab)``: no NaN, no +inf, at least one finite; ``-inf`` for tokens
        that may not be drawn.

    Raises:
        ValueError: If ``alpha`` is not in (0, 1] or ``head`` is unknown.
    """
    cond, cond_log_probs = log_contrast(cond_final, cond_mid)
    uncond, uncond_log_probs = log_contrast(uncond_final, uncond_mid)
    in_cond = apc_head(cond_log_probs, alpha)
    in_uncond = apc_head(uncond_log_probs, alpha)

    if head == "seed":
        cond = cond.masked_fill(~in_cond, MASK_VALUE)
        uncond = uncond.masked_fill(~in_uncond, MASK_VALUE)
        return classifier_free_guidance(cond, uncond, cfg_weight)
    if head == "cond":
        allowed = in_cond
    elif head == "union":
        allowed = in_cond | in_uncond
    elif head == "intersection":
        both = in_cond & in_uncond
        allowed = both | (in_cond & ~both.any(dim=-1, keepdim=True))
    else:
        raise ValueError(f"head is {head!r}; expected one of {', '.join(get_args(HeadPolicy))}")
    scores = classifier_free_guidance(cond, uncond, cfg_weight)
    return scores.masked_fill(~allowed, float("-inf"))
