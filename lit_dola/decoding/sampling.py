"""Drawing a token: temperature, top-k, top-p, and the random stream of each sequence.

The noise is keyed: it depends only on (seed, prompt index, image index, step, token id), so an
image does not depend on its batch, its device or the order of the run. It comes from SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), a
counter-based generator that takes a few integer operations on the device itself.
"""

from dataclasses import dataclass
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def stream_keys(seed: int | Tensor, prompt_index: Tensor, image_index: Tensor) -> Tensor:
    """Return the key of each sequence's random stream.

    Args:
        seed: Seed of the run, or of each sequence, int64 ``(batch,)``.
        prompt_index: Index of each sequence's prompt in the prompt file, int64 ``(batch,)``.
        image_index: Index of each sequence among those of its prompt, int64 ``(batch,)``.

    Returns:
        Int64 keys ``(batch,)``.
    """
    # Mixing between the additions keeps (seed 1, prompt 2) apart from (seed 2, prompt 1).
    key = _mix(torch.zeros_like(prompt_index) + seed)
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


class EntropyTemperature(NamedTuple):
    """A temperature that falls with the entropy of the distribution.

    The temperature is multiplied by ``span * exp(-entropy / scale) + floor``, with the entropy in
    nats of the scores before temperature, top-k, top-p and min-p: where the model is sure, tokens
    are drawn more freely, where it hesitates, more strictly.

    Source: Ma et al., "Towards Better & Faster Autoregressive Image Generation: From the
    Perspective of Entropy" (arXiv 2510.09012, 2025), section 3; their code for LlamaGen uses
    2.5, 3 and 0.6.
    """

    span: float
    scale: float
    floor: float

    def factor(self, scores: Tensor) -> Tensor:
        """Return the factor of each row, ``(..., 1)``."""
        span, scale, floor = map(_in_float32, self)
        return span * torch.exp(-entropy_of(scores)[..., None] / scale) + floor


def entropy_of(scores: Tensor) -> Tensor:
    """Return the entropy in nats of ``softmax(scores)``, ``(...)``."""
    entropy: Tensor = torch.special.entr(scores.softmax(dim=-1)).sum(dim=-1)
    return entropy


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the draw.

    Args:
        temperature: 0 is greedy: the largest score, ties to the lowest token id.
        top_k: Keep the k most probable tokens only.
        top_p: Keep the smallest set of most probable tokens whose mass reaches ``top_p``.
        min_p: Keep tokens with at least ``min_p`` times the probability of the most probable one
            (Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024, section 3).
        entropy_temperature: Makes the temperature depend on the entropy of the scores.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    entropy_temperature: EntropyTemperature | None

    def draw(self, scores: Tensor, noise: Tensor) -> Tensor:
        """Draw one token per row by the Gumbel-max trick.

        Args:
            scores: Scores used as logits, ``(batch, vocab)``; ``-inf`` excludes a token.
            noise: Gumbel noise of the same shape; not used when the temperature is 0.

        Returns:
            Token ids, int64 ``(batch,)``.
        """
        return self.race(scores, noise).argmax(dim=-1)

    def race(self, scores: Tensor, noise: Tensor) -> Tensor:
        """Return the values of all tokens, float32 ``(batch, vocab)``; the largest is drawn."""
        return self.perturb(self.logits(scores), noise)

    def perturb(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Add the noise to what :meth:`logits` returns, unless the draw is greedy."""
        return logits if self.temperature == 0 else logits + noise

    def log_probs(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return the log-probabilities that tokens are drawn with, float32 ``(batch,)``.

        Args:
            logits: As :meth:`logits` returns them, ``(batch, vocab)``.
            tokens: The tokens that were drawn, int64 ``(batch,)``; greedy ones get 0.
        """
        if self.temperature == 0:
            return torch.zeros_like(tokens, dtype=torch.float32)
        return log_probs_of(logits, tokens)

    def logits(self, scores: Tensor) -> Tensor:
        """Return the logits of the distribution to draw from, float32; if greedy, the scores."""
        scores = scores.float()
        if self.temperature == 0:
            return scores
        logits = temper(scores, self.temperature, self.entropy_temperature)
        if self.top_k is not None:
            threshold = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < threshold, float("-inf"))
        if self.top_p is not None:
            logits = logits.masked_fill(~_nucleus(logits, self.top_p), float("-inf"))
        if self.min_p is not None:
            logits = logits.masked_fill(logits < log(self.min_p), float("-inf"))  # the largest is 0
        return logits


def log_probs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities of tokens ``(...)`` under logits ``(..., vocab)``, float32."""
    # Not by gather: compiled for a CPU next to the rest of the step, it crashes (torch 2.13).
    places = torch.arange(logits.shape[-1], device=logits.device)
    of_token = logits.where(places == tokens[..., None], -torch.inf).amax(dim=-1)
    return (of_token - logits.logsumexp(dim=-1)).float()


def temper(
    scores: Tensor, temperature: float, entropy_temperature: EntropyTemperature | None = None
) -> Tensor:
    """Divide scores by a temperature above 0, as near to it as float32 can represent.

    Args:
        scores: Scores ``(..., vocab)``, float32.
        temperature: Temperature above 0; ``inf`` is the largest float32.
        entropy_temperature: Makes it depend on the entropy of the scores.

    Returns:
        Logits ``(..., vocab)`` whose largest is 0, without a NaN or ``+inf`` that ``scores`` lacks.
    """
    logits = scores - scores.amax(dim=-1, keepdim=True)  # or a small temperature would overflow
    temperature = _in_float32(temperature)
    if entropy_temperature is None:
        return logits / temperature
    limits = torch.finfo(torch.float32)
    factor = entropy_temperature.factor(logits).clamp(limits.tiny, limits.max)
    return logits / (temperature * factor).clamp(limits.tiny, limits.max)


def _in_float32(number: float) -> float:
    """Return a number as near as float32 has to it, above 0 and finite.

    -inf over a temperature that overflows would be NaN, and so would 0 over one that vanishes.
    """
    limits = torch.finfo(torch.float32)
    return min(max(number, limits.tiny), limits.max)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Return the mask of the smallest set of most probable tokens whose mass reaches ``top_p``.

    Holtzman et al., "The Curious Case of Neural Text Degeneration" (ICLR 2020), section 3.1.
    """
    probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    mass_before = probs.cumsum(dim=-1) - probs
    keep = mass_before < _in_float32(top_p)
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
