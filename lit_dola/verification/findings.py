"""Findings: rows of a table, those of all ranks together, and ``verify.json``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lit_dola.errors import writing_to
from lit_dola.runs.files import write_atomically

_WORDS = {True: "ok", False: "FAILED", None: ""}


@dataclass(frozen=True)
class Row:
    """A promise, or a figure."""

    name: str
    """The check, a colon, and what it looked at."""
    found: str
    expected: str = ""
    """The promise; empty for a figure."""
    ok: bool | None = None
    """True if the promise holds; None for a figure."""
    advice: str = ""
    """The setting that avoids a failure."""
    rank: int = 0
    """The rank that found it."""


def promise(name: str, found: str, expected: str, ok: bool, advice: str = "") -> Row:
    """Return the row of a promise, with advice only where it fails."""
    return Row(name, found, expected, ok, "" if ok else advice)


def worst_of(ranks: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the rows of all ranks together: a failure of any rank, else what the first one found.

    Args:
        ranks: The rows of each rank; a rank may lack some, for which there was no time.
    """
    found: dict[str, Row] = {}
    for rank, rows in enumerate(ranks):
        for row in rows:
            known = found.get(row.name)
            if known is None or (known.ok is not False and row.ok is False):
                found[row.name] = replace(row, rank=rank)
    return [*found.values()]


def table_of(rows: Sequence[Row], world_size: int = 1) -> str:
    """Return rows as aligned text.

    Args:
        rows: The rows.
        world_size: Ranks; of several ones, a failure names the rank.
    """
    width = max((len(row.name) for row in rows), default=0)
    lines = []
    for row in rows:
        where = f" (rank {row.rank})" if world_size > 1 and row.ok is False else ""
        expected = f"; expected {row.expected}" if row.ok is False and row.expected else ""
        lines.append(f"{_WORDS[row.ok]:<6}  {row.name:<{width}}  {row.found}{expected}{where}")
        if row.advice:
            lines.append(f"{'':<6}  {'':<{width}}  try {row.advice}")
    return "\n".join(lines)


def write_findings(
    path: Path, rows: Sequence[Row], left_out: Sequence[str], about: Mapping[str, Any]
) -> None:
    """Write ``verify.json``.

    Args:
        path: The file.
        rows: The rows.
        left_out: Checks for which there was no time.
        about: Versions, device, model and settings.
    """
    ok = all(row.ok is not False for row in rows)
    content = {**about, "ok": ok, "left_out": [*left_out], "rows": [*map(asdict, rows)]}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    with writing_to(path, "output"):
        write_atomically(path, [text.encode(), b"\n"])
