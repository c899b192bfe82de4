"""Texts for users: lines for stderr, amounts and rates, suggestions for misspelt names."""

import json
import logging
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

_SINGULAR = {"entries": "entry", "batches": "batch"}


def log_to_stderr() -> None:
    """Print the package's own messages, with the level in front unless it is INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logging.getLogger("lit_dola").handlers = [handler]
    logging.getLogger("lit_dola").setLevel(logging.INFO)


class _Formatter(logging.Formatter):
    """Formatter that omits the level INFO."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname}: {text}"


def one_line(text: str) -> str:
    """Return a text without line breaks."""
    return " ".join(text.split())


def first_line(error: Exception) -> str:
    """Return the first line of another package's error, or its type if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def causes(error: Exception) -> Iterator[Exception]:
    """Yield an exception and what caused it, the first cause last."""
    yield error
    if isinstance(error.__cause__, Exception):
        yield from causes(error.__cause__)


def printable(text: str) -> str:
    r"""Return a text that UTF-8 can encode: an undecodable byte of a path becomes ``\udcff``.

    Example:
        >>> printable("models/janus")
        'models/janus'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the likely meaning of an unknown name, to append to a message; may be empty.

    Args:
        name: A name as the user gave it, with or without its group.
        known: All known names, with their groups: ``model.alpha``.

    Example:
        >>> suggestion("alhpa", ["model.alpha", "model.seed"])
        '; did you mean model.alpha?'
    """
    full = {key: key for key in known}
    short = {key.rpartition(".")[2]: key for key in full}
    for names in (full, short):
        for match in get_close_matches(name, names, n=1, cutoff=0.75):
            return f"; did you mean {names[match]}?"
    return ""


def amount(count: int, results: str) -> str:
    """Return a count with its noun.

    Example:
        >>> amount(1, "images"), amount(2000, "batches")
        ('1 image', '2,000 batches')
    """
    return f"{count:,} {singular(results) if count == 1 else results}"


def singular(results: str) -> str:
    """Return the singular of a plural noun: ``image`` for ``images``."""
    return _SINGULAR.get(results, results.removesuffix("s"))


def rate_of(rate: float, results: str) -> str:
    """Return a rate, e.g. ``1.4 images/s`` or, if it is low, ``12 s/image``."""
    if rate >= 1:
        return f"{rate:.3g} {results}/s"
    return f"{1 / rate:.3g} s/{singular(results)}"


def label(value: Any, between: str = "-") -> str:
    """Return a value as it stands in the name of a variant, or in a figure.

    Example:
        >>> label(True), label("union"), label([2.5, 3, 0.6])
        ('true', 'union', '2.5-3-0.6')
    """
    if isinstance(value, list | tuple):
        return between.join(label(part, between) for part in value)
    return value if isinstance(value, str) else json.dumps(value)
