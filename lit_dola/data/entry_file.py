"""Files of entries in the forms that people have them in: JSON, lines, tables, folders of either.

Each entry becomes a text or an object, whatever the form; the readers of prompts, questions and
items check its content.
"""

import csv
import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lit_dola.data.requests import ID, Failure
from lit_dola.errors import UserError
from lit_dola.messages import first_line
from lit_dola.settings.checks import require
from lit_dola.settings.texts import check_unicode, decode

Entry = TypeVar("Entry")
Places = Iterable[tuple[str, Any]]
"""Entries, each with its place in the file."""
LISTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Suffixes of files with many entries."""
_CONTAINERS = ("prompts", "questions", "annotations")
"""Keys of an object that may hold the list of entries; ``annotations`` is COCO's."""
_SHARED = "data_subtype"
"""Key beside VQAv2's list of questions that every one of them needs: the split of COCO."""
_LINE_END = re.compile(r"\r\n|\r|\n")
_LONGEST_CELL = 2**31 - 1
_MAX_DEPTH = 100
"""Maximum levels of metadata, well within the parser's limit."""


def read_entries(
    path: Path,
    make: Callable[[int, Any], Entry],
    skipped: list[Failure] | None = None,
    pictures: bool = False,
) -> list[Entry]:
    """Read a file of entries.

    Args:
        path: JSON (a list, an object id -> entry, or an object with ``prompts``, ``questions`` or
            COCO's ``annotations``), JSON Lines (also in a ``.json`` file), plain text with one
            entry per line (``.txt``), a table with a head (``.csv``, ``.tsv``), or Parquet.
        make: Converts the index and the content of an entry, or raises a UserError.
        skipped: Receives the bad entries; if None, the first one is an error.
        pictures: Whether pictures in a Parquet file are read, as ``data:`` URLs.

    Raises:
        UserError: If the file cannot be read, has no entry, or has a bad one that is not skipped;
            the message names the file and the entry or line.
    """
    try:
        return make_entries(entries_of(path, pictures), make, skipped)
    except UserError as error:
        raise error.within(path) from error.__cause__


def entries_of(path: Path, pictures: bool = False) -> tuple[Places, Callable[..., Any]]:
    """Return the entries of a file, each with its place, and a function that parses one."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        rows = _rows_of_parquet(path)
        return ((at, _with_urls(row)) for at, row in rows) if pictures else rows, _row_as_json
    text = read_text(path)
    if suffix == ".txt":
        return lines_of(text), _as_it_is
    if suffix in (".csv", ".tsv"):
        return _table(text, "\t" if suffix == ".tsv" else _delimiter(text))
    if suffix in (".jsonl", ".ndjson") or (suffix == ".json" and _holds_lines(text)):
        return lines_of(text), _parse_json
    return listed(_listed_in(_parse_json(text)))


def listed(values: Iterable[Any]) -> tuple[Places, Callable[..., Any]]:
    """Return entries by their index in a list, as :func:`entries_of` does."""
    return ((f"entry {index}", value) for index, value in enumerate(values)), _as_it_is


def make_entries(
    entries: tuple[Places, Callable[..., Any]],
    make: Callable[[int, Any], Entry],
    skipped: list[Failure] | None,
) -> list[Entry]:
    """Convert every entry."""
    places, parse = entries
    found: list[Entry] = []
    reason = "empty; expected at least one entry"
    for index, (where, entry) in enumerate(places):
        parsed = None
        try:
            parsed = parse(entry, where)
            found.append(make(index, parsed))
        except UserError as error:
            reason = f"{where}: {error}"
            if skipped is None:
                raise UserError(reason) from error.__cause__
            name = parsed.get(ID) if isinstance(parsed, dict) else None
            name = name if isinstance(name, str) else None
            skipped.append(Failure(index, None, None, reason, name))
    if not found:
        raise UserError(reason)
    return found


def read_text(path: Path) -> str:
    """Return the text of a file: UTF-8, or as its byte order mark says."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"not readable: {error.strerror}") from error
    text = decode(content)
    if not text.strip():
        raise UserError("empty", "at least one entry")
    return text


def find_key(entry: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Return the first of some keys that an entry has, as it spells it; case does not matter."""
    if keys[0] in entry:  # as in nearly all of many entries
        return keys[0]
    spelt: dict[str, str] = {}
    for name in entry:
        spelt.setdefault(name.strip().lower(), name)
    return next((key if key in entry else spelt[key] for key in keys if key in spelt), None)


def _as_it_is(entry: Any, where: str) -> Any:
    return entry


def _listed_in(document: Any) -> Iterable[Any]:
    """Return the entries in a JSON document."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise UserError(f"found {kind_of(document)}", "a list or an object of entries")
    container = find_key(document, _CONTAINERS)
    if container and isinstance(document[container], list):
        shared = {_SHARED: document[_SHARED]} if _SHARED in document else {}
        return [
            {**shared, **entry} if shared and isinstance(entry, dict) else entry
            for entry in document[container]
        ]
    pairs = document.pairs if isinstance(document, _Pairs) else document.items()
    if pairs and not any(isinstance(value, str | dict) for _, value in pairs):
        raise UserError(
            f"found an object with the keys {some_names(document)}",
            f"id -> prompt, or one of the keys {', '.join(_CONTAINERS)} with a list",
        )
    return [
        {"id": key, **value} if isinstance(value, dict) else {"id": key, "prompt": value}
        for key, value in pairs
    ]


def some_names(names: Iterable[str], most: int = 6) -> str:
    """Return the first of some names, for a message."""
    known = [f"{name!r:.40}" for name in names]
    return ", ".join(known[:most]) + (", …" if len(known) > most else "")


def _table(text: str, delimiter: str) -> tuple[Places, Callable[..., Any]]:
    """Return the rows of a table, and a function that names their cells as its first row says."""
    csv.field_size_limit(_LONGEST_CELL)  # a cell may be a picture
    try:
        rows = [*_read_rows(text, delimiter, quoted=True)]
    except csv.Error as error:
        if delimiter != "\t":
            raise UserError(f"not a table: {error}") from error
        rows = [*_read_rows(text, delimiter, quoted=False)]  # quotes are part of the texts
    if not rows:
        raise UserError("empty", "at least one entry")
    (_, head), *body = rows
    names = [name.strip() for name in head]
    if again := next((name for name in names if name and names.count(name) > 1), None):
        raise UserError(f"two columns are called {again!r:.40}", "different names")

    def parse(row: list[str], where: str) -> dict[str, str]:
        if any(map(str.strip, row[len(names) :])):
            raise UserError(
                f"{len(row)} cells, but {len(names)} columns",
                f'as many; a text with {delimiter!r}, a quote or a line break stands in "',
            )
        return {name: cell for name, cell in zip(names, row) if name and cell}

    return ((f"line {line}", row) for line, row in body), parse


def _delimiter(text: str) -> str:
    """Return what separates the cells of a ``.csv``: spreadsheets also write ; and tabs."""
    head = _LINE_END.split(text.strip(), maxsplit=1)[0]
    return next((mark for mark in ",;\t" if mark in head), ",")


def _read_rows(text: str, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, and the line on which each begins."""
    how: dict[str, Any] = {"quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True, **how)
    line = 1
    for row in reader:
        if any(cell.strip() for cell in row):
            yield line, row
        line = reader.line_num + 1


def _rows_of_parquet(path: Path) -> Places:
    require("pyarrow", "a .parquet file", extra="parquet")
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise UserError(f"not readable as Parquet: {first_line(error)}") from error
    return ((f"row {index}", row) for index, row in enumerate(rows))


def _with_urls(value: Any) -> Any:
    """Return a row with ``data:`` URLs for pictures: bytes, or ``{"bytes": …, "path": …}``."""
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return _with_urls(value["bytes"])
        return {name: _with_urls(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [*map(_with_urls, value)]
    return f"data:;base64,{b64encode(value).decode()}" if isinstance(value, bytes) else value


def _row_as_json(row: Any, where: str) -> Any:
    """Return a row without bytes, such as pictures, and with texts for what JSON has no type for.

    NaN, with which pandas marks a missing number, becomes null.
    """
    if isinstance(row, dict):
        inner = {name: _row_as_json(value, where) for name, value in row.items()}
        return {name: inner[name] for name in row if not isinstance(row[name], bytes)}
    if isinstance(row, list | tuple):
        return [_row_as_json(value, where) for value in row if not isinstance(value, bytes)]
    if isinstance(row, float) and not math.isfinite(row):
        if math.isnan(row):
            return None
        raise UserError(f"found {row}", "finite numbers")
    return row if row is None or isinstance(row, str | int | float) else str(row)


def _holds_lines(text: str) -> bool:
    """Return whether a text is JSON Lines: its first line is an object, and more follows it."""
    first, *rest = _LINE_END.split(text.strip(), maxsplit=1)
    try:
        return bool("".join(rest).strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def lines_of(text: str) -> Places:
    """Yield the lines that are not blank, each with its place; any line end counts."""
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if line.strip():
            yield f"line {number}", line


class _Pairs(dict[str, Any]):
    """A JSON object with duplicate keys, which it remembers."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Pairs(pairs)


def _parse_json(text: str, where: str | None = None) -> Any:
    """Parse a document, or one line whose place the caller reports."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=refuse_constant,
            parse_float=_parse_float,
        )
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if where else f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{place}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise UserError("not JSON: nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits, or NaN
        raise UserError(f"not JSON: {error}") from error


def refuse_constant(constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads as JSON: for ``parse_constant``.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{constant} is not a JSON value")


def _parse_float(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is too large for a number")
    return value


def check_writable(what: str, value: Any) -> None:
    """Check that a value can be written to a record later."""
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _inner(outer)]:
        depth += 1
        if depth > _MAX_DEPTH:
            raise UserError(f"{what} is nested too deeply", f"at most {_MAX_DEPTH} levels")
    check_unicode(what, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def kind_of(value: Any) -> str:
    """Name the type of a JSON value."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
