"""Errors and messages meant for users rather than for programmers."""

import logging
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, get_args, get_type_hints


class UserError(Exception):
    """An error that the user can fix.

    Its one-line message names the file, entry or setting, what was found and what was expected. The
    command line prints only this message, without a traceback, and exits with 1.
    """


class RankError(UserError):
    """An error local to one rank; every rank that hits one reports it."""


def log_to_stderr() -> None:
    """Print the package's own messages; the level stands before those that are not information."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logging.getLogger("lit_dola").handlers = [handler]
    logging.getLogger("lit_dola").setLevel(logging.INFO)


class _Formatter(logging.Formatter):
    """Puts the level before a message, unless it merely informs."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname}: {text}"


def one_line(text: str) -> str:
    """Return a text without its line breaks."""
    return " ".join(text.split())


def first_line(error: Exception) -> str:
    """Return the first line of what an error of another package says, or else its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require(package: str, setting: str, extra: str) -> None:
    """Check that an optional package is installed.

    Args:
        package: Name of the package.
        setting: The setting that needs it.
        extra: The extra of this project that installs it.

    Raises:
        UserError: If it is not installed.
    """
    if find_spec(package) is None:
        raise UserError(f'{setting}: {package} is not installed; pip install -e ".[{extra}]"')


def refuse_null(owner: type, settings: Mapping[str, Any], group: str = "") -> None:
    """Check that no setting is None that cannot be: a key of YAML with nothing behind it.

    Args:
        owner: Class whose arguments the settings are.
        settings: Settings by name.
        group: What to write before the names, as ``model.``.

    Raises:
        UserError: If one is.
    """
    hints = get_type_hints(owner.__init__)  # type: ignore[misc]
    for name, value in settings.items():
        if value is None and name in hints and type(None) not in get_args(hints[name]):
            default = signature(owner).parameters[name].default
            raise UserError(f"{group}{name}: null; expected a value, as the default {default!r}")


def given_path(setting: str, path: str | PathLike[str]) -> Path:
    """Return a path that the user gave; an unset variable of a shell is none.

    Raises:
        UserError: If it is empty, which would mean the working directory.
    """
    if not str(path).strip():
        raise UserError(f"{setting}: empty; expected a path, or . for the working directory")
    return Path(path).expanduser()


def printable(text: str) -> str:
    r"""Return a text that can be written as UTF-8: a byte of a path that cannot becomes ``\udcff``.

    Example:
        >>> printable("models/janus")
        'models/janus'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the likely meaning of an unknown name, to append to a message; may be empty.

    Args:
        name: A name as the user gave it, perhaps without its group.
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
