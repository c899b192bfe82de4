"""Rates, paired differences and their intervals, against plain loops and known values."""

import json
import random
from statistics import fmean

import pytest

from lit_dola.reports.scores import OVERALL, Score, estimates, write_report


def scores(skill, rights, first_prompt=0):
    """``rights``: the scores of each prompt's images."""
    return [
        Score(skill, first_prompt + prompt, image, right)
        for prompt, images in enumerate(rights)
        for image, right in enumerate(images)
    ]


def drawn(seed, prompts, images, chance):
    rng = random.Random(seed)
    return [[float(rng.random() < chance) for _ in range(images)] for _ in range(prompts)]


def test_means_by_skill_and_their_unweighted_mean():
    counting, colors = drawn(0, 7, 3, 0.4), drawn(1, 5, 3, 0.8)
    found = estimates(scores("counting", counting) + scores("colors", colors, 7))
    means = [fmean(map(fmean, rights)) for rights in (counting, colors)]
    assert list(found) == ["counting", "colors", OVERALL]
    assert [found[skill].mean for skill in found] == pytest.approx([*means, fmean(means)], abs=1e-6)
    for estimate in found.values():
        assert estimate.low < estimate.mean < estimate.high


def test_the_interval_is_that_of_the_mean_of_prompts():
    """200 prompts, half of them right: the normal interval is 0.5 -+ 1.96 sqrt(0.25 / 200)."""
    half = 1.96 * (0.25 / 200) ** 0.5
    rights = [[float(prompt % 2)] for prompt in range(200)]
    one = estimates(scores("x", rights))["x"]
    assert (one.low, one.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)
    # Ten identical images carry no more information than one.
    ten = estimates(scores("x", [images * 10 for images in rights]))["x"]
    assert ten == one
    # The mean of two skills has half the variance of either.
    both = estimates(scores("x", rights) + scores("y", rights, 200))[OVERALL]
    assert both.high - both.low == pytest.approx(2 * half / 2**0.5, abs=0.02)


def test_differences_are_taken_image_by_image():
    base = drawn(2, 100, 2, 0.5)
    better = [[*images] for images in base]
    for prompt in range(0, 100, 10):  # the first image of every tenth prompt
        better[prompt][0] = 1.0
    gained = fmean(b - a for one, two in zip(base, better) for a, b in zip(one, two))
    found = estimates(scores("x", better), scores("x", base))["x"]
    assert found.mean == pytest.approx(gained, abs=1e-6)
    assert 0 <= found.low <= gained <= found.high < 0.1  # unpaired it would be 0.2 wide
    same = estimates(scores("x", base), scores("x", base))["x"]
    assert same == (0, 0, 0)


def test_what_only_one_of_the_two_has_is_left_out():
    base, other = scores("x", [[1.0], [0.0]]), scores("x", [[1.0], [1.0], [1.0]])
    assert estimates(other, base)["x"].mean == 0.5


def test_the_report(tmp_path):
    settings = {
        "baseline": scores("colors", [[0.0, 1.0], [0.0, 0.0]]),
        "dola": scores("colors", [[1.0, 1.0], [0.0, 0.0]]),
    }
    write_report(tmp_path, settings, "baseline", {"model": "m"})
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["model"] == "m"
    assert report["rates"]["baseline"]["colors"]["mean"] == 0.25
    assert report["differences"]["dola"]["colors"]["mean"] == 0.25
    assert "baseline" not in report["differences"]
    markdown = (tmp_path / "report.md").read_text()
    assert "2 variants, 2 prompts, 4 images per variant" in markdown
    assert "| `dola` | 50.0 (0.0 to 100.0) | 50.0 (0.0 to 100.0) |" in markdown
    assert "| `dola` | +25.0 (+0.0 to +50.0) |" in markdown
    plot = (tmp_path / "report.svg").read_text()
    assert plot.lstrip().startswith("<?xml")
    write_report(tmp_path, {"only": settings["dola"]}, "only", {})
    assert "percentage points" not in (tmp_path / "report.md").read_text().lower()
