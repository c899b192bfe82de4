"""Intervals and a test that stay honest for a few prompts, where a bootstrap looks certain.

All are for values per prompt: the images of one prompt are not independent of each other.
"""

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist, fmean, variance
from typing import NamedTuple

LEVEL = 95
"""Level of all intervals, percent."""
FEWEST = 5
"""Prompts below which no interval is shown."""
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 200)


class Estimate(NamedTuple):
    """A mean with its interval."""

    mean: float
    low: float
    high: float
    prompts: int
    """Prompts that it is a mean over."""


def rate(prompts: Sequence[Sequence[float]]) -> Estimate:
    """Estimate a rate by Wilson's interval, for as many images as would vary as these do.

    The number of independent images is that which explains how much the prompts differ, at least
    the number of prompts and at most that of images (Korn and Graubard, "Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data", 1998;
    Wilson, "Probable inference", 1927).

    Args:
        prompts: The scores of each prompt's images, each between 0 and 1; not empty.

    Example:
        >>> rate([[1.0], [0.0]])  # 50 %, of two prompts: it may be almost anything
        Estimate(mean=0.5, low=0.094531, high=0.905469, prompts=2)
    """
    means = [fmean(images) for images in prompts]
    p, count = fmean(means), len(means)
    n = float(count)
    spread = variance(means) / count if count > 1 else 0.0
    if spread > 0:
        n = min(max(p * (1 - p) / spread, count), sum(map(len, prompts)))
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return _rounded(p, min(middle - half, p), max(middle + half, p), count)


def difference(prompts: Sequence[float]) -> Estimate:
    """Estimate a paired difference of rates.

    Two more prompts, one won and one lost by as much as prompts usually are here, keep the interval
    from vanishing where all prompts agree. With one image per prompt this is Bonett and Price's
    interval ("Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", 2012) with Student's quantile, which matters for several images of few prompts.

    Args:
        prompts: The mean difference of each prompt's images, each between -1 and 1; not empty.

    Example:
        >>> difference([0.0] * 20)
        Estimate(mean=0.0, low=-0.133682, high=0.133682, prompts=20)
    """
    squares = [d * d for d in prompts if abs(d) > 1e-9]
    n = len(prompts) + 2
    middle = sum(prompts) / n
    variance_of_one = (sum(squares) + 2 * fmean(squares or [1.0])) / n - middle**2
    half = _students_quantile(n - 1) * sqrt(variance_of_one / n)
    mean = fmean(prompts)
    low, high = max(middle - half, -1.0), min(middle + half, 1.0)
    return _rounded(mean, min(low, mean), max(high, mean), len(prompts))


def _students_quantile(freedom: int) -> float:
    """Return Student's quantile for :data:`LEVEL` (Abramowitz and Stegun 1964, formula 26.7.5)."""
    z = _Z
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def average(parts: Sequence[Estimate]) -> Estimate:
    """Estimate the unweighted mean of independent estimates, from their intervals.

    Source: Zou and Donner, "Construction of confidence limits about effect measures: a general
    approach" (2008).
    """
    count = len(parts)
    mean = fmean(part.mean for part in parts)
    below = sqrt(sum((part.mean - part.low) ** 2 for part in parts)) / count
    above = sqrt(sum((part.high - part.mean) ** 2 for part in parts)) / count
    return _rounded(mean, mean - below, mean + above, sum(part.prompts for part in parts))


def sign_test(prompts: Sequence[float]) -> float:
    """Return the p-value of the exact sign test: how unlikely it is that neither side is better.

    It counts the prompts that one side wins, and those that the other does; with one image per
    prompt this is McNemar's exact test. Two-sided.

    Args:
        prompts: The mean difference of each prompt's images.

    Example:
        >>> sign_test([1.0] * 5)
        0.0625
    """
    won, lost = sum(d > 0 for d in prompts), sum(d < 0 for d in prompts)
    n = won + lost
    tail = sum(comb(n, k) for k in range(min(won, lost) + 1))
    return min(1.0, float(2 * tail / 2**n))


def _rounded(mean: float, low: float, high: float, prompts: int) -> Estimate:
    return Estimate(round(mean, 6), round(low, 6), round(high, 6), prompts)
