"""Errors meant for users rather than for programmers."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec


class UserError(Exception):
    """An error that the user can fix.

    Its one-line message names the file, entry or setting, what was found and what was expected. The
    command line prints only this message, without a traceback, and exits with 1.
    """


class RankError(UserError):
    """An error local to one rank; every rank that hits one reports it."""


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
