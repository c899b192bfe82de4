"""Rates and paired differences by skill, and the report."""

import json
import random
from statistics import fmean

import pytest

from lit_dola.reports.report import overall_table, write_report
from lit_dola.reports.scores import OVERALL, Report, Score, differences, p_value, rates
from tests.support.pages import NASTY, Page


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
    found = rates(scores("counting", counting) + scores("colors", colors, 7))
    means = [fmean(map(fmean, rights)) for rights in (counting, colors)]
    assert list(found) == ["counting", "colors", OVERALL]
    assert [found[skill].mean for skill in found] == pytest.approx([*means, fmean(means)], abs=1e-6)
    assert [found[skill].prompts for skill in found] == [7, 5, 12]


def test_differences_are_taken_image_by_image():
    base = drawn(2, 100, 2, 0.5)
    better = [[*images] for images in base]
    for prompt in range(0, 100, 10):  # the first image of every tenth prompt
        better[prompt][0] = 1.0
    gained = fmean(b - a for one, two in zip(base, better) for a, b in zip(one, two))
    found = differences(scores("x", better), scores("x", base))["x"]
    assert found.mean == pytest.approx(gained, abs=1e-6)
    assert found.low <= gained <= found.high < 0.1  # unpaired it would be 0.2 wide
    same = differences(scores("x", base), scores("x", base))["x"]
    assert same.mean == 0
    assert p_value(scores("x", base), scores("x", base)) == 1
    won = sum(one != two for one, two in zip(base, better))
    assert p_value(scores("x", better), scores("x", base)) == pytest.approx(2 * 0.5**won, abs=1e-6)


def test_what_only_one_of_the_two_has_is_left_out():
    base, other = scores("x", [[1.0], [0.0]]), scores("x", [[1.0], [1.0], [1.0]])
    assert differences(other, base)["x"].mean == 0.5


LINKS = {"side by side": "compare/index.html", "dola": "dola/index.html"}
VARIANTS = {"baseline": {"dola": False}, "dola": {}}


@pytest.mark.slow
def test_the_report(tmp_path):
    found = {
        "baseline": scores("colors", [[0.0, 1.0], [0.0, 0.0]] * 3) + scores("few", [[1.0]], 6),
        "dola": scores("colors", [[1.0, 1.0], [0.0, 0.0]] * 3) + scores("few", [[1.0]], 6),
    }
    write_report(tmp_path, Report(found, "baseline", VARIANTS, {}, {"model": "m"}), LINKS)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["model"] == "m"
    assert report["rates"]["baseline"]["colors"]["mean"] == 0.25
    assert report["differences"]["dola"]["colors"]["mean"] == 0.25
    assert report["p"] == {"dola": 0.25}  # three prompts of three won
    assert "baseline" not in report["differences"]
    markdown = (tmp_path / "report.md").read_text()
    assert "# 2 variants, 13 images each" in markdown
    assert "| prompts | 6 | 1 | 7 |" in markdown
    assert "| `baseline` | 25.0 (8.9 to 53.2) | 100.0 (–) | 62.5 (" in markdown
    assert "| `dola` | +25.0 (" in markdown
    assert "| +0.0 (–) |" in markdown
    assert "| `baseline` | `dola: false` |" in markdown
    assert "| `dola` | nothing |" in markdown
    assert "![](report.svg)" in markdown
    assert "grid.svg" not in markdown
    page = Page((tmp_path / "index.html").read_text())
    assert page.attributes("a", "href") == [
        *LINKS.values(), "dola/index.html", "dola/index.html", "report.svg"
    ]  # fmt: skip
    assert "13 images each; model m." in " ".join(page.texts)
    assert page.texts.count("25.0 (8.9 to 53.2)") == 1
    assert "variant   percent right" in overall_table(Report(found, "baseline", VARIANTS, {}, {}))
    for suffix in ("svg", "pdf", "png"):
        assert (tmp_path / f"report.{suffix}").stat().st_size > 1000
    write_report(tmp_path, Report({"dola": found["dola"]}, "dola", {"dola": {}}, {}, {}), {})
    text = (tmp_path / "report.md").read_text()
    assert "percentage points" not in text.lower()
    assert text.startswith("# 1 variant, 13 images each")


@pytest.mark.slow
def test_the_report_of_a_grid_shows_its_figure(tmp_path):
    variants = {f"alpha-{alpha}": {"alpha": alpha} for alpha in (0.1, 0.2)}
    found = {name: scores("x", [[1.0], [0.0]]) for name in variants}
    write_report(tmp_path, Report(found, "alpha-0.1", variants, {"alpha": [0.1, 0.2]}, {}), {})
    assert "![](grid.svg)" in (tmp_path / "report.md").read_text()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(tmp_path, Report(found, "alpha-0.1", variants, {"alpha": [0.1, 0.2]}, {}), {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_are_text_on_the_page(tmp_path):
    found = {"one": scores(NASTY[0], [[1.0], [0.0]]), "two": scores(NASTY[0], [[1.0], [1.0]])}
    variants = {"one": {"prior": NASTY[1]}, "two": {}}
    write_report(tmp_path, Report(found, "one", variants, {}, {"model": NASTY[2]}), {})
    page = Page((tmp_path / "index.html").read_text())
    assert not page.attributes("script", "src")
    assert [tag for tag, _ in page.tags if tag == "script"] == []
    assert NASTY[0] in page.texts
    assert NASTY[1] in " ".join(page.texts)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
