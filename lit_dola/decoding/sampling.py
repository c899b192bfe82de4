"""Drawing a token: temperature, top-k, top-p, and the random stream of each sequence.

The noise is keyed: it depends only on (seed, prompt index, image index, step, token id), so an
image does not depend on its batch, its device or the order of the run. It comes from SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), a
counter-based generator that takes a few integer operations on the device itself.
"""

import torch
from torch import Tensor

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def stream_keys(seed: int, prompt_index: Tensor, image_index: Tensor) -> Tensor:
    """Return the key of each sequence's random stream.

    Args:
        seed: Seed of the run.
        prompt_index: Index of each sequence's prompt in the prompt file, int64 ``(batch,)``.
        image_index: Index of each sequence among those of its prompt, int64 ``(batch,)``.

    Returns:
        Int64 keys ``(batch,)``.
    """
    # Mixing between the additions keeps (seed 1, prompt 2) apart from (seed 2, prompt 1).
    key = _mix(torch.full_like(prompt_index, seed))
    key = _mix(key + prompt_index)
    return _mix(key + image_index)


def gumbel_noise(keys: Tensor, step: int | Tensor, vocab_size: int) -> Tensor:
    """Return the standard Gumbel noise of one decoding step.

    Args:
        keys: Keys of the random streams, int64 ``(batch,)``.
        step: Index of the token to draw, from 0.
        vocab_size: Noise values per sequence.

    Returns:
        Float32 noise ``(batch, vocab_size)``, finite.
    """
    step_keys = _mix(keys + step)
    counter = torch.arange(vocab_size, device=keys.device)
    bits = _mix(step_keys[:, None] + counter * _GOLDEN_GAMMA)
    # 31 bits to a uniform in (0, 1): the clamp keeps float32 rounding from reaching 1.
    uniform = _logical_shift(bits, 33).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def sample(
    scores: Tensor,
    noise: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Draw one token per row by the Gumbel-max trick.

    Args:
        scores: Scores used as logits, ``(batch, vocab)``; ``-inf`` excludes a token.
        noise: Gumbel noise of the same shape; not used when ``temperature`` is 0.
        temperature: 0 is greedy: the largest score, ties to the lowest token id.
        top_k: Keep the k most probable tokens only.
        top_p: Keep the smallest set of most probable tokens whose mass reaches ``top_p``.

    Returns:
        Token ids, int64 ``(batch,)``.
    """
    scores = scores.float()
    if temperature == 0:
        return scores.argmax(dim=-1)
    # Subtract the maximum first, so that no temperature, however small, overflows.
    logits = temper(scores - scores.amax(dim=-1, keepdim=True), temperature)
    if top_k is not None:
        threshold = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if top_p is not None:
        logits = logits.masked_fill(~_nucleus(logits, top_p), float("-inf"))
    return (logits + noise).argmax(dim=-1)


def temper(scores: Tensor, temperature: float) -> Tensor:
    """Divide scores by a temperature above 0, as near to it as float32 can represent.

    Otherwise ``-inf`` over a temperature that overflows would be NaN, and so would 0 over one that
    vanishes.
    """
    limits = torch.finfo(torch.float32)
    return scores / min(max(temperature, limits.tiny), limits.max)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Return the mask of the smallest set of most probable tokens whose mass reaches ``top_p``.

    Holtzman et al., "The Curious Case of Neural Text Degeneration" (ICLR 2020), section 3.1.
    """
    probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    mass_before = probs.cumsum(dim=-1) - probs
    keep = mass_before < top_p
    return torch.zeros_like(keep).scatter(-1, order, keep)


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's output function, on int64 that wraps around."""
    z = state + _GOLDEN_GAMMA
    z = z.bitwise_xor_(_logical_shift(z, 30)).mul_(_MIX_1)
    z = z.bitwise_xor_(_logical_shift(z, 27)).mul_(_MIX_2)
    return z.bitwise_xor_(_logical_shift(z, 31))


def _logical_shift(z: Tensor, bits: int) -> Tensor:
    """Right shift that fills with zeros; ``>>`` on int64 repeats the sign bit."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
