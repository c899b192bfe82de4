"""The one error that is meant for people rather than for programmers."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec


class UserError(Exception):
    """Something that the user can mend; its one-line message says what was found and what to do.

    The command line prints the message alone, without a traceback, and exits with 1.
    """


class RankError(UserError):
    """One that a rank met by itself: of several ranks, each that has one says so."""


def require(package: str, setting: str, extra: str) -> None:
    """Check that a package is installed that only some runs need.

    Args:
        package: Its name.
        setting: What needs it.
        extra: The extra of this project that it comes with.

    Raises:
        UserError: If it is not.
    """
    if find_spec(package) is None:
        raise UserError(f'{setting}: {package} is not installed; pip install -e ".[{extra}]"')


def suggestion(name: str, known: Iterable[str]) -> str:
    """What a name that is unknown was probably meant to be, to end a message with; may be empty.

    Args:
        name: A name as it was given, perhaps without the group that it belongs to.
        known: All that there are, the groups before them: ``model.alpha``.
    """
    full = {key: key for key in known}
    short = {key.rpartition(".")[2]: key for key in full}
    for names in (full, short):
        for match in get_close_matches(name, names, n=1, cutoff=0.75):
            return f"; did you mean {names[match]}?"
    return ""
