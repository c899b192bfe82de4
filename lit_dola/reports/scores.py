"""Scores of an evaluation: rates per skill with bootstrap intervals, paired with a reference.

Written as JSON, as Markdown and as a plot.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_dola.runs.files import write_atomically

OVERALL = "overall"
"""The unweighted mean of the skills, as GenEval's overall score is."""
_RESAMPLES = 2000
_LEVEL = 95


class Score(NamedTuple):
    """The score of one image."""

    skill: str
    prompt_index: int
    image_index: int
    right: float
    """1 or 0, or anything between."""


class Estimate(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def estimates(scores: list[Score], reference: list[Score] | None = None) -> dict[str, Estimate]:
    """Estimate the mean score of each skill and overall, or the mean difference from a reference.

    The bootstrap resamples prompts within each skill, with all their images, because the images of
    one prompt are not independent (Efron and Tibshirani 1993, chapter 13: percentile intervals).

    Args:
        scores: Scores of one variant.
        reference: Scores of another variant on the same prompts. Differences are taken image by
            image, because both were made with the same noise.

    Returns:
        Estimates by skill, in the order of the prompts, and :data:`OVERALL` last.
    """
    theirs = {score[1:3]: score.right for score in reference or ()}
    by_prompt: dict[str, dict[int, list[float]]] = {}
    for score in sorted(scores, key=lambda score: score[1:3]):
        right = score.right
        if reference is not None:
            if score[1:3] not in theirs:
                continue
            right -= theirs[score[1:3]]
        by_prompt.setdefault(score.skill, {}).setdefault(score.prompt_index, []).append(right)
    rng = np.random.default_rng(0)
    found, means, draws = {}, [], []
    for skill, prompts in by_prompt.items():
        values = np.array([np.mean(images) for images in prompts.values()])
        drawn = values[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1)
        found[skill] = _estimate(values.mean(), drawn)
        means.append(values.mean())
        draws.append(drawn)
    if means:
        found[OVERALL] = _estimate(np.mean(means), np.mean(draws, axis=0))
    return found


def _estimate(mean: float, draws: np.ndarray) -> Estimate:
    tail = (100 - _LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Estimate(*(round(float(value), 6) for value in (mean, low, high)))


def write_report(
    folder: Path,
    scores: dict[str, list[Score]],
    reference: str,
    about: dict[str, Any],
) -> None:
    """Write ``report.json``, ``report.md`` and ``report.svg``.

    Args:
        folder: Folder to write to.
        scores: Scores by variant.
        reference: Variant that the others are compared with.
        about: What was evaluated; copied into the JSON.
    """
    rates = {name: estimates(found) for name, found in scores.items()}
    differences = {
        name: estimates(found, scores[reference])
        for name, found in scores.items()
        if name != reference
    }
    report = {
        **about,
        "reference": reference,
        "interval": f"{_LEVEL} % percentile bootstrap over prompts, {_RESAMPLES} resamples",
        "rates": _plain(rates),
        "differences": _plain(differences),
    }
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "report.json", [text.encode()])
    images = len(scores[reference])
    prompts = len({score.prompt_index for score in scores[reference]})
    markdown = [
        f"# {len(scores)} variants, {prompts} prompts, {images} images per variant\n\n",
        f"Percent right, with the {report['interval']}.\n\n",
        _table(rates, "{:.1f}"),
    ]
    if differences:
        markdown += [
            f"\nPercentage points more than `{reference}`, image by image on the same noise.\n\n",
            _table(differences, "{:+.1f}"),
        ]
    write_atomically(folder / "report.md", ["".join(markdown).encode()])
    _plot(folder / "report.svg", rates, differences, reference)


def _plain(found: dict[str, dict[str, Estimate]]) -> dict[str, Any]:
    return {
        name: {skill: estimate._asdict() for skill, estimate in skills.items()}
        for name, skills in found.items()
    }


def _table(found: dict[str, dict[str, Estimate]], number: str) -> str:
    """Format a Markdown table in percent, with one row per variant and one column per skill."""
    skills = list(next(iter(found.values())))
    rows = [["variant", *skills], ["---", *["---:"] * len(skills)]]
    for name, estimate in found.items():
        cells = [
            f"{number.format(100 * e.mean)} ({number.format(100 * e.low)} to"
            f" {number.format(100 * e.high)})"
            for e in estimate.values()
        ]
        rows.append([f"`{name}`", *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _plot(
    path: Path,
    rates: dict[str, dict[str, Estimate]],
    differences: dict[str, dict[str, Estimate]],
    reference: str,
) -> None:
    """Plot the overall rates, and next to them the differences from the reference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.3 * len(rates)), layout="constrained")
    axes = figure.subplots(1, 2)
    names = list(rates)
    for axis, found, label in (
        (axes[0], rates, "overall, percent right"),
        (axes[1], differences, f"percentage points more than {reference}"),
    ):
        shown = [name for name in names if found.get(name)]
        places = [names.index(name) for name in shown]
        overall = 100 * np.array([found[name][OVERALL] for name in shown]).reshape(-1, 3)
        errors = [overall[:, 0] - overall[:, 1], overall[:, 2] - overall[:, 0]]
        axis.errorbar(overall[:, 0], places, xerr=errors, fmt="o", capsize=3)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[1].axvline(0, color="black", linewidth=0.8)
    figure.savefig(path, metadata={"Date": None})
