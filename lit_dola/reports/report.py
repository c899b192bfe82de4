"""The report of an evaluation: a page, Markdown, JSON, figures, and a table for the terminal."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_dola.reports.figures import draw_grid, draw_rates
from lit_dola.reports.html import write_page
from lit_dola.reports.intervals import FEWEST, Estimate
from lit_dola.reports.scores import OVERALL, Report, show_p
from lit_dola.runs.files import write_atomically

Rows = list[list[str]]
"""A table: its head, then a row per variant."""


def write_report(folder: Path, report: Report, links: Mapping[str, str]) -> None:
    """Write ``index.html``, ``report.json``, ``report.md``, and figures ``report.*``, ``grid.*``.

    Args:
        folder: Folder to write to.
        report: What was found.
        links: Further pages by their name, relative to the folder; a variant's own is under its
            name.
    """
    text = json.dumps(_as_json(report), indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "report.json", [text.encode()])
    overall = {name: skills[OVERALL] for name, skills in report.rates.items() if skills}
    gains = {name: skills[OVERALL] for name, skills in report.differences.items() if skills}
    figures = ["report.svg"]
    draw_rates(folder / "report", overall, gains, report.reference, report.quantity)
    if draw_grid(folder / "grid", overall, report.variants, report.grid):
        figures.insert(0, "grid.svg")
    tables = [*_tables(report)]
    write_atomically(folder / "report.md", [_as_markdown(report, figures, tables).encode()])
    write_page(
        folder / "index.html",
        "report.html",
        title=folder.resolve().name,
        heading=_heading(report),
        note=_note(report),
        figures=figures,
        tables=tables,
        links=links,
        about=report.about,
        changes=report.variants,
        reference=report.reference,
    )


def overall_table(report: Report) -> str:
    """Return the rates of all skills together as aligned text: one line per variant."""
    quantity = report.quantity.replace("Percent", "percent")
    rows = [("variant", quantity, f"more than {report.reference}", "p")]
    for name, skills in report.rates.items():
        gained = report.differences.get(name)
        rows.append(
            (
                name,
                _cell(skills[OVERALL], "{:.1f}") if skills else "",
                _cell(gained[OVERALL], "{:+.1f}") if gained else "",
                show_p(report.p_values[name]) if name in report.p_values else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def _heading(report: Report) -> str:
    count, scored = len(report.scores), len(report.scores[report.reference])
    return f"{count} variant{'s' * (count != 1)}, {scored} {report.results} each"


def _note(report: Report) -> str:
    note = f" {report.note}" if report.note else ""
    return f"{report.methods}. A dash: fewer than {FEWEST} {report.subjects}.{note}"


def _as_json(report: Report) -> dict[str, Any]:
    further = {
        table.name: {name: dict(zip(table.columns, row)) for name, row in table.rows.items()}
        for table in report.tables
    }
    return {
        **report.about,
        "variants": report.variants,
        "reference": report.reference,
        "intervals": report.methods,
        "quantity": report.quantity,
        "rates": _plain(report.rates),
        "differences": _plain(report.differences),
        "p": report.p_values,
        **further,
    }


def _plain(found: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    return {
        name: {skill: estimate._asdict() for skill, estimate in skills.items()}
        for name, skills in found.items()
    }


def _tables(report: Report) -> Iterator[tuple[str, Rows]]:
    """Yield each table and its title."""
    yield report.quantity, _table(report.rates, "{:.1f}", report.subjects)
    if report.differences:
        one = report.results.removesuffix("s")
        rows = _table(report.differences, "{:+.1f}", report.subjects)
        last = ["p", "", *(show_p(report.p_values[name]) for name in report.differences)]
        points = "Percentage points" if report.quantity == "Percent right" else "Points"
        title = f"{points} more than {report.reference}, {one} by {one} on the same noise"
        yield title, [[*row, cell] for row, cell in zip(rows, last)]
    for table in report.tables:
        body = [
            [name, *(f"{100 * value:.1f}" for value in row)] for name, row in table.rows.items()
        ]
        yield table.title, [["variant", *table.columns], *body]


def _table(found: Mapping[str, Mapping[str, Estimate]], number: str, subjects: str) -> Rows:
    """Return a table in percent, with one row per variant and one column per skill."""
    some = max(found.values(), key=len)
    rows = [["variant", *some], [subjects, *(str(estimate.prompts) for estimate in some.values())]]
    for name, estimates in found.items():
        rows.append([name, *(_cell(estimate, number) for estimate in estimates.values())])
    return rows


def _cell(estimate: Estimate, number: str) -> str:
    mean, low, high = (number.format(100 * value) for value in estimate[:3])
    return f"{mean} (–)" if estimate.prompts < FEWEST else f"{mean} ({low} to {high})"


def _as_markdown(report: Report, figures: list[str], tables: list[tuple[str, Rows]]) -> str:
    parts = [f"# {_heading(report)}\n\n{_note(report)}\n\n"]
    parts += [f"![]({figure})\n\n" for figure in figures]
    for title, (head, *body) in tables:
        named = [[f"`{row[0]}`" if row[0] in report.scores else row[0], *row[1:]] for row in body]
        parts.append(f"{title}:\n\n{_markdown([head, *named], aligned=True)}\n")
    changes = [["variant", "changes"]]
    for name, changed in report.variants.items():
        told = ", ".join(f"{key}: {json.dumps(value)}" for key, value in changed.items())
        changes.append([f"`{name}`", f"`{told}`" if told else "nothing"])
    parts.append(f"What each variant changes:\n\n{_markdown(changes)}")
    return "".join(parts)


def _markdown(rows: Rows, aligned: bool = False) -> str:
    head, *body = rows
    line = ["---", *["---:" if aligned else "---"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, line, *body))
