"""Intervals and the sign test against known values, brute force and simulated coverage."""

import itertools
import random
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_dola.reports.intervals import average, difference, rate, sign_test

ZERO_ONE = st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=4), min_size=1)


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [  # Wilson's interval as tables have it
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (1, 20, 0.0089, 0.2361),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I: method 3
    ],
)
def test_one_image_per_prompt_has_wilsons_interval(right, of, low, high):
    found = rate([[1.0]] * right + [[0.0]] * (of - right))
    assert found.mean == pytest.approx(right / of, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert found.prompts == of


@given(ZERO_ONE)
def test_a_rate_lies_in_its_interval_and_none_is_certain(prompts):
    found = rate(prompts)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.mean == pytest.approx(fmean(map(fmean, prompts)), abs=1e-6)
    assert found.high - found.low > 1 / (len(prompts) * 4 + 4)  # never of width zero


@given(ZERO_ONE)
def test_images_of_a_prompt_never_count_less_than_one_or_more_than_all(prompts):
    wide, narrow = (
        rate([[fmean(map(fmean, prompts))]] * n) for n in (len(prompts), sum(map(len, prompts)))
    )
    found = rate(prompts)
    assert narrow.high - narrow.low <= found.high - found.low + 1e-5
    assert found.high - found.low <= wide.high - wide.low + 1e-5


def test_identical_images_carry_no_more_than_one():
    prompts = [[float(prompt % 3 == 0)] for prompt in range(30)]
    assert rate([images * 10 for images in prompts]) == rate(prompts)


def test_two_prompts_that_agree_are_not_certain():
    """A bootstrap of them has width zero."""
    found = rate([[1.0, 0.0], [0.0, 1.0]])
    assert (found.low, found.high) == pytest.approx((0.0945, 0.9055), abs=1e-4)


def drawn(rng, prompts, images, mean, spread):
    """Images whose chance varies from prompt to prompt."""
    chances = [min(1, max(0, rng.uniform(mean - spread, mean + spread))) for _ in range(prompts)]
    return [[float(rng.random() < chance) for _ in range(images)] for chance in chances]


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("prompts", [5, 20, 40])
@pytest.mark.parametrize("mean", [0.3, 0.6])
def test_the_interval_of_a_rate_holds_it_95_times_of_100(mean, prompts, spread):
    rng = random.Random(0)
    found = [rate(drawn(rng, prompts, 4, mean, spread)) for _ in range(600)]
    assert sum(one.low <= mean <= one.high for one in found) / len(found) > 0.92


@pytest.mark.parametrize("prompts", [5, 20, 40])
@pytest.mark.parametrize("images", [1, 2, 4])
@pytest.mark.parametrize(("base", "gain"), [(0.3, 0.0), (0.3, 0.3), (0.05, 0.2)])
def test_the_interval_of_a_difference_holds_it_95_times_of_100(base, gain, images, prompts):
    rng = random.Random(1)
    held = 0
    for _ in range(400):
        before, after = (
            drawn(rng, prompts, images, mean, min(mean, 0.2)) for mean in (base, base + gain)
        )
        found = difference([fmean(a) - fmean(b) for a, b in zip(after, before)])
        held += found.low <= gain <= found.high
    assert held / 400 > 0.92


def test_where_prompts_differ_the_interval_is_about_that_of_their_mean():
    """Not wider by much than Student's, which has no prompts added."""
    rng = random.Random(3)
    prompts = [rng.choice([-0.5, -0.25, 0.0, 0.25, 0.5]) for _ in range(40)]
    found = difference(prompts)
    students = 2 * 2.0227 * stdev(prompts) / 40**0.5
    assert students * 0.95 < found.high - found.low < students * 1.1


def test_the_difference_of_pairs_is_bonett_and_prices():
    """12 pairs won, 4 lost, 24 even, by their formula with f + 1 and n + 2."""
    found = difference([1.0] * 12 + [-1.0] * 4 + [0.0] * 24)
    won, lost, n = 13 / 42, 5 / 42, 42
    half = 2.019541 * ((won + lost - (won - lost) ** 2) / n) ** 0.5  # Student's, of 41
    assert found.mean == 0.2
    assert (found.low, found.high) == pytest.approx(
        (won - lost - half, won - lost + half), abs=1e-5
    )


@given(st.lists(st.floats(-1, 1).map(lambda d: round(d, 3)), min_size=1, max_size=30))
def test_a_difference_lies_in_its_interval(prompts):
    found = difference(prompts)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert found.high > found.low


def test_the_mean_of_equal_skills_has_half_the_width_of_four():
    one = rate([[1.0]] * 20 + [[0.0]] * 20)
    four = average([one] * 4)
    assert four.mean == one.mean
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2, abs=1e-5)
    assert four.prompts == 160


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), max_size=10))
def test_the_sign_test_counts_the_outcomes_that_are_as_uneven(prompts):
    signs = [1 if d > 0 else -1 for d in prompts if d]
    outcomes = [abs(sum(flips)) for flips in itertools.product([-1, 1], repeat=len(signs))]
    as_uneven = sum(outcome >= abs(sum(signs)) for outcome in outcomes) / len(outcomes)
    assert sign_test(prompts) == pytest.approx(as_uneven)
