"""Scores of an evaluation: rates per skill with intervals, paired with a reference.

Written as JSON and as Markdown, with the figures of :mod:`lit_dola.reports.figures`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_dola.reports.figures import draw_grid, draw_rates
from lit_dola.reports.intervals import (
    FEWEST,
    LEVEL,
    Estimate,
    average,
    difference,
    rate,
    sign_test,
)
from lit_dola.runs.files import write_atomically

OVERALL = "overall"
"""The unweighted mean of the skills, as GenEval's overall score is."""
_METHODS = (
    f"{LEVEL} % intervals over {{0}}: Wilson's for rates, Bonett and Price's for paired"
    " differences, Zou and Donner's for the mean of the skills; p by the exact sign test over"
    " {0}"
)


class Score(NamedTuple):
    """The score of one image."""

    skill: str
    prompt_index: int
    image_index: int
    right: float
    """1 or 0, or anything between."""


class Table(NamedTuple):
    """Further figures of each variant, besides its rates."""

    name: str
    """Its key in the JSON."""
    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    """Shares by variant, one per column."""


Prompts = dict[str, list[list[float]]]
"""By skill, the values of each prompt's images."""


def by_prompt(scores: list[Score], reference: list[Score] | None = None) -> Prompts:
    """Group scores by skill and prompt; with a reference, differences from it, image by image.

    Args:
        scores: Scores of one variant.
        reference: Scores of another variant on the same prompts, made with the same noise; images
            that it lacks are left out.
    """
    theirs = {score[1:3]: score.right for score in reference or ()}
    found: dict[str, dict[int, list[float]]] = {}
    for score in sorted(scores, key=lambda score: score[1:3]):
        right = score.right
        if reference is not None:
            if score[1:3] not in theirs:
                continue
            right -= theirs[score[1:3]]
        found.setdefault(score.skill, {}).setdefault(score.prompt_index, []).append(right)
    return {skill: list(prompts.values()) for skill, prompts in found.items()}


def rates(scores: list[Score]) -> dict[str, Estimate]:
    """Estimate the rate of each skill, in the order of the prompts, and :data:`OVERALL` last."""
    return _with_overall(by_prompt(scores), rate)


def differences(scores: list[Score], reference: list[Score]) -> dict[str, Estimate]:
    """Estimate the mean difference from a reference likewise, image by image."""
    return _with_overall(by_prompt(scores, reference), lambda p: difference(_means(p)))


def p_value(scores: list[Score], reference: list[Score]) -> float:
    """Return the p-value of the difference from a reference, over the prompts of all skills."""
    prompts = by_prompt(scores, reference).values()
    return round(sign_test(_means([images for skill in prompts for images in skill])), 6)


def _means(prompts: Sequence[Sequence[float]]) -> list[float]:
    return [sum(images) / len(images) for images in prompts]


def _with_overall(
    prompts: Prompts, estimate: Callable[[list[list[float]]], Estimate]
) -> dict[str, Estimate]:
    found = {skill: estimate(values) for skill, values in prompts.items()}
    return {**found, OVERALL: average(list(found.values()))} if found else {}


def write_report(
    folder: Path,
    scores: dict[str, list[Score]],
    reference: str,
    variants: Mapping[str, Mapping[str, Any]],
    grid: Mapping[str, Sequence[Any]],
    about: Mapping[str, Any],
    *,
    results: str = "images",
    subjects: str = "prompts",
    tables: Sequence[Table] = (),
) -> None:
    """Write ``report.json``, ``report.md`` and the figures ``report.*`` and ``grid.*``.

    Args:
        folder: Folder to write to.
        scores: Scores by variant.
        reference: Variant that the others are compared with.
        variants: What each variant changes.
        grid: Values by setting of the variants that are combinations; may be empty.
        about: What was evaluated; copied into the JSON.
        results: What was scored.
        subjects: What the results are about; intervals are over them.
        tables: Further figures.
    """
    others = {name: found for name, found in scores.items() if name != reference}
    methods = _METHODS.format(subjects)
    found = {name: rates(own) for name, own in scores.items()}
    gained = {name: differences(own, scores[reference]) for name, own in others.items()}
    p_values = {name: p_value(own, scores[reference]) for name, own in others.items()}
    report = {
        **about,
        "variants": variants,
        "reference": reference,
        "intervals": methods,
        "rates": _plain(found),
        "differences": _plain(gained),
        "p": p_values,
        **{
            table.name: {name: dict(zip(table.columns, row)) for name, row in table.rows.items()}
            for table in tables
        },
    }
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "report.json", [text.encode()])
    overall = {name: skills[OVERALL] for name, skills in found.items() if skills}
    gains = {name: skills[OVERALL] for name, skills in gained.items() if skills}
    figures = ["report.svg"]
    draw_rates(folder / "report", overall, gains, reference)
    if draw_grid(folder / "grid", overall, variants, grid):
        figures.insert(0, "grid.svg")
    count = len(scores[reference])
    markdown = [
        f"# {_count(len(scores), 'variant')}, {count} {results} each\n\n",
        f"{methods}. A dash: fewer than {FEWEST} {subjects}.\n\n",
        *(f"![]({figure})\n\n" for figure in figures),
        "Percent right:\n\n",
        _table(found, "{:.1f}", subjects),
    ]
    if gained:
        one = results.removesuffix("s")
        markdown += [
            f"\nPercentage points more than `{reference}`, {one} by {one} on the same noise:\n\n",
            _table(gained, "{:+.1f}", subjects, p_values),
        ]
    for table in tables:
        head = [["variant", *table.columns], ["---", *["---:"] * len(table.columns)]]
        body = [
            [f"`{name}`", *(f"{100 * value:.1f}" for value in row)]
            for name, row in table.rows.items()
        ]
        markdown.append(f"\n{table.title}:\n\n{_markdown([*head, *body])}")
    markdown += ["\nWhat each variant changes:\n\n", _changes(variants)]
    write_atomically(folder / "report.md", ["".join(markdown).encode()])


def overall_table(scores: Mapping[str, list[Score]], reference: str) -> str:
    """Return the rates of all skills together as aligned text: one line per variant.

    Args:
        scores: Scores by variant.
        reference: Variant that the others are compared with.
    """
    rows = [("variant", "percent right", f"more than {reference}", "p")]
    for name, own in scores.items():
        rate, gained, p = (rates(own), differences(own, scores[reference]), "")
        if name != reference:
            p = show_p(p_value(own, scores[reference]))
        rows.append(
            (
                name,
                _cell(rate[OVERALL], "{:.1f}") if rate else "",
                _cell(gained[OVERALL], "{:+.1f}") if gained and name != reference else "",
                p,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _plain(found: dict[str, dict[str, Estimate]]) -> dict[str, Any]:
    return {
        name: {skill: estimate._asdict() for skill, estimate in skills.items()}
        for name, skills in found.items()
    }


def _table(
    found: dict[str, dict[str, Estimate]],
    number: str,
    subjects: str,
    p_values: Mapping[str, float] | None = None,
) -> str:
    """Format a Markdown table in percent, with one row per variant and one column per skill."""
    some = max(found.values(), key=len)
    rows = [["variant", *some], ["---", *["---:"] * len(some)]]
    rows.append([subjects, *(str(estimate.prompts) for estimate in some.values())])
    for name, estimates in found.items():
        rows.append([f"`{name}`", *(_cell(estimate, number) for estimate in estimates.values())])
    if p_values is not None:
        last = ["p", "---:", "", *(show_p(p_values[name]) for name in found)]
        rows = [[*row, cell] for row, cell in zip(rows, last)]
    return _markdown(rows)


def show_p(p: float) -> str:
    """Return a p-value as reports print it."""
    return f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


def _cell(estimate: Estimate, number: str) -> str:
    mean, low, high = (number.format(100 * value) for value in estimate[:3])
    return f"{mean} (–)" if estimate.prompts < FEWEST else f"{mean} ({low} to {high})"


def _changes(variants: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["variant", "changes"], ["---", "---"]]
    for name, changes in variants.items():
        told = ", ".join(f"{key}: {json.dumps(value)}" for key, value in changes.items())
        rows.append([f"`{name}`", f"`{told}`" if told else "nothing"])
    return _markdown(rows)


def _markdown(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
