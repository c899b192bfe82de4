"""Reading prompt files: JSON, JSON Lines, plain text or a folder, and reporting what is wrong."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lit_dola.data.requests import Failure, Prompt
from lit_dola.errors import UserError

PROMPT_KEYS = ("prompt", "text", "caption")
"""Keys that may hold an object's prompt; the first one found counts."""
Entry = TypeVar("Entry")
_MAX_DEPTH = 100
"""Levels of metadata: far more than anybody needs, and far fewer than a reader of JSON bears."""


def read_prompts(path: Path, skipped: list[Failure] | None = None) -> list[Prompt]:
    """Read a prompt file.

    Args:
        path: A file in one of the forms that :class:`lit_dola.PromptDataModule` lists, UTF-8 with
            or without a byte order mark; or a folder of ``.txt`` files, each one prompt whose
            ``id`` is the file's name without its suffix (DPG-Bench's form).
        skipped: Receives the entries that are not prompts; if None, the first one is an error.

    Raises:
        UserError: If the file cannot be read, contains no prompt, or has a bad entry that is not
            skipped; the message names the file and the entry or line.
    """
    files = _text_files(path) if path.is_dir() else []
    if not files:
        return read_entries(path, _prompt, skipped)
    try:
        return _read_entries(*_files(files), _prompt, skipped)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__


def read_entries(
    path: Path, make: Callable[[int, Any], Entry], skipped: list[Failure] | None = None
) -> list[Entry]:
    """Read a file of entries: JSON, JSON Lines or plain text.

    Args:
        path: The file; a ``.json`` file may hold JSON Lines, too.
        make: Makes an entry of its index in the file and its content, or raises a UserError.
        skipped: Receives the bad entries; if None, the first one is an error.

    Raises:
        UserError: As :func:`read_prompts`.
    """
    text = _read_text(path)
    try:
        return _read_entries(*_entries(text, path.suffix.lower()), make, skipped)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__


def check_prompts(entries: Iterable[Any]) -> list[Prompt]:
    """Return prompts from a list of the kind that a prompt file contains.

    Raises:
        UserError: If an entry is not a prompt; the message names it.
    """
    return _read_entries(*_listed(entries), _prompt, None)


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise UserError(f"{path}: empty; expected at least one entry")
    return text


def _text_files(folder: Path) -> list[Path]:
    """Return the text files of a folder, without hidden ones, as macOS leaves beside others."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == ".txt" and not path.name.startswith(".") and path.is_file()
    )


def _files(files: list[Path]) -> tuple[Iterable[tuple[str, Any]], Callable[..., Any]]:
    """Return one entry per file, and a function that reads it."""
    entries = ((path.name, path) for path in files)
    return entries, lambda path, where: {"id": path.stem, "prompt": _read_text(path)}


def _entries(text: str, suffix: str) -> tuple[Iterable[tuple[str, Any]], Callable[..., Any]]:
    """Return the entries, each with its place, and a function that parses one."""
    if suffix == ".txt":
        return _lines(text), lambda entry, where: entry
    if suffix in (".jsonl", ".ndjson"):
        return _lines(text), _parse_json
    if suffix == ".json" and _holds_lines(text):
        return _lines(text), _parse_json
    document = _parse_json(text)
    if isinstance(document, dict):
        pairs = document.pairs if isinstance(document, _Pairs) else document.items()
        values: list[Any] = [{"id": key, "prompt": value} for key, value in pairs]
    elif isinstance(document, list):
        values = document
    else:
        raise UserError(f"found {kind_of(document)}; expected a list or an object of prompts")
    return _listed(values)


def _holds_lines(text: str) -> bool:
    """Return whether a text is JSON Lines: its first line is an object, and more follows it."""
    first, _, rest = text.strip().partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _listed(values: Iterable[Any]) -> tuple[Iterable[tuple[str, Any]], Callable[..., Any]]:
    """Return entries by their index in a list."""
    entries = ((f"entry {index}", value) for index, value in enumerate(values))
    return entries, lambda entry, where: entry


def _read_entries(
    entries: Iterable[tuple[str, Any]],
    parse: Callable[..., Any],
    make: Callable[[int, Any], Entry],
    skipped: list[Failure] | None,
) -> list[Entry]:
    found: list[Entry] = []
    reason = "empty; expected at least one entry"
    for index, (where, entry) in enumerate(entries):
        try:
            found.append(make(index, parse(entry, where)))
        except UserError as error:
            reason = f"{where}: {error}"
            if skipped is None:
                raise UserError(reason) from error.__cause__
            skipped.append(Failure(index, None, None, reason))
    if not found:
        raise UserError(reason)
    return found


def _lines(text: str) -> Iterable[tuple[str, str]]:
    """Yield the lines that are not blank, each with its place."""
    for number, line in enumerate(text.split("\n"), start=1):
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
    raise ValueError(f"{constant} is no JSON value")


def _parse_float(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is too large for a number")
    return value


def _prompt(index: int, entry: Any) -> Prompt:
    if isinstance(entry, str):
        text, metadata = entry, {}
    elif isinstance(entry, dict):
        key = next((key for key in PROMPT_KEYS if key in entry), None)
        if key is None:
            raise UserError(f"no prompt; expected one of the keys {', '.join(PROMPT_KEYS)}")
        text, metadata = entry[key], {name: entry[name] for name in entry if name != key}
    else:
        raise UserError(f"found {kind_of(entry)}; expected a string or an object")
    if not isinstance(text, str):
        raise UserError(f"prompt is {kind_of(text)}; expected a string")
    if not text.strip():
        raise UserError("prompt is empty; expected a text")
    check_writable("prompt", text)
    check_writable("metadata", metadata)
    return Prompt(index, text.strip(), metadata)


def check_writable(what: str, value: Any) -> None:
    """Check that a value can be written to a record later.

    Raises:
        UserError: If it cannot.
    """
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _inner(outer)]:
        depth += 1
        if depth > _MAX_DEPTH:
            raise UserError(f"{what} is nested too deeply; expected at most {_MAX_DEPTH} levels")
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} has half a surrogate pair, {error.object[error.start]!a}; expected Unicode"
        ) from error


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
