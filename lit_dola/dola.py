"""DoLa-static: contrast the final layer's distribution with that of one fixed middle layer.

Pure tensor functions, independent of Janus: they work for an image head (``gen_head``), a text
head (``lm_head``) and the similarity scores of a vision tower.

Source: Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large
Language Models" (ICLR 2024), section 2; its adaptive plausibility constraint (APC) is from Li et
al., "Contrastive Decoding" (ACL 2023), section 3. "Static" means that the middle layer (DoLa's
premature layer) is fixed rather than chosen at every step.

With a strength s the score is ``log q_final - s * log q_middle``. Contrastive decoding as O'Brien
and Lewis write it ("Contrastive Decoding Improves Reasoning in Large Language Models", 2023,
section 2), ``(1 + beta) log q_final - beta log q_middle``, is ``s = beta / (1 + beta)`` at
temperature ``1 / (1 + beta)``.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

MASK_VALUE = -1e9
"""Score of a token outside the head set: finite, and far below every score inside it."""


def contrast_with_apc_from_logits(
    final_logits: Tensor,
    mid_logits: Tensor,
    alpha: float,
    strength: float = 1.0,
    outside: float = MASK_VALUE,
) -> Tensor:
    """Contrast two sets of logits and mask the tokens that the final layer finds implausible.

    Args:
        final_logits: Logits of the final layer, ``(..., vocab)``, any floating dtype.
        mid_logits: Logits of the middle layer, same shape; not used if ``strength`` is 0.
        alpha: Threshold of the head set, ``0 <= alpha <= 1``; 0: every token is in it.
        strength: How much of the middle layer is subtracted, ``0 <= strength <= 1``.
        outside: Score of tokens outside the head set.

    Returns:
        ``log_softmax(final) - strength * log_softmax(mid)`` on the head set, ``outside`` outside
        it; float32, ``(..., vocab)``, to be used as logits.

    Raises:
        ValueError: If ``alpha`` or ``strength`` is not in [0, 1].

    Example:
        >>> scores = contrast_with_apc_from_logits(final_logits, mid_logits, alpha=0.1)
        >>> token = torch.multinomial(scores.softmax(dim=-1), num_samples=1)
    """
    contrast, final_log_probs = log_contrast(final_logits, mid_logits, strength)
    return contrast.masked_fill(~apc_mask(final_log_probs, alpha), outside)


def dola_static_from_hidden(
    hidden_states: Sequence[Tensor],
    head_module: Callable[[Tensor], Tensor],
    j_index: int,
    alpha: float,
    strength: float = 1.0,
) -> Tensor:
    """Score the next token by DoLa-static, from the hidden states of a forward pass.

    Args:
        hidden_states: The states of every layer, each ``(..., sequence, hidden)``; the last entry
            is the head's usual input (in transformers: after the final norm).
        head_module: Maps ``(..., hidden)`` to logits ``(..., vocab)``: ``gen_head`` or ``lm_head``.
        j_index: Index of the middle layer in ``hidden_states``.
        alpha: Threshold of the head set, ``0 <= alpha <= 1``; 0: every token is in it.
        strength: How much of the middle layer is subtracted, ``0 <= strength <= 1``.

    Returns:
        Masked contrast at the last position, float32, ``(..., vocab)``.

    Raises:
        ValueError: If ``alpha`` or ``strength`` is not in [0, 1].
    """
    final_logits = head_module(hidden_states[-1][..., -1, :])
    mid_logits = head_module(hidden_states[j_index][..., -1, :])
    return contrast_with_apc_from_logits(final_logits, mid_logits, alpha, strength)


def pick_static_layer_index(num_hidden_states: int, has_embedding: bool, ratio: float = 0.8) -> int:
    """Choose the middle layer by its relative depth.

    Args:
        num_hidden_states: Number of entries in ``hidden_states``.
        has_embedding: Whether entry 0 is the embedding, which is then never chosen.
        ratio: Depth between 0 (first) and 1 (last); the nearest index is taken, halves up.

    Returns:
        An index that is neither the embedding nor the final layer.

    Raises:
        ValueError: If ``ratio`` is outside [0, 1], or there is no layer before the final one.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"layer ratio is {ratio}; expected a number between 0 and 1")
    first, last = int(has_embedding), num_hidden_states - 2
    if last < first:
        raise ValueError(f"no layer before the final one among {num_hidden_states} hidden states")
    nearest = math.floor(ratio * (num_hidden_states - 1) + 0.5)
    return min(max(nearest, first), last)


def log_contrast(
    final_logits: Tensor, mid_logits: Tensor, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the unmasked contrast, and the final log-probabilities that define the head set.

    Both are ``(..., vocab)``, float32 unless the logits are float64.

    Raises:
        ValueError: If ``strength`` is not in [0, 1].
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength is {strength}; expected 0 <= strength <= 1")
    final_log_probs = at_least_float32(final_logits).log_softmax(dim=-1)
    if strength == 0:  # 0 times the log of a probability of 0 would be NaN
        return final_log_probs, final_log_probs
    mid_log_probs = at_least_float32(mid_logits).log_softmax(dim=-1)
    return final_log_probs - strength * mid_log_probs, final_log_probs


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in float32, or in float64 if they are in it."""
    return logits if logits.dtype.itemsize > 4 else logits.float()


def apc_mask(final_log_probs: Tensor, alpha: float) -> Tensor:
    """Return the head set of the adaptive plausibility constraint: ``q >= alpha * max q``.

    Args:
        final_log_probs: Log-probabilities of the final layer, ``(..., vocab)``.
        alpha: Threshold, ``0 <= alpha <= 1``; 0: every token is in it.

    Returns:
        Bool mask ``(..., vocab)``, True inside the head set. The most probable token is always
        inside, and so is NaN, so that masking cannot hide one.

    Raises:
        ValueError: If ``alpha`` is not in [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; expected 0 <= alpha <= 1")
    log_alpha = math.log(alpha) if alpha else -math.inf
    threshold = final_log_probs.amax(dim=-1, keepdim=True) + log_alpha
    return ~(final_log_probs < threshold)
