"""The one error that is meant for people rather than for programmers."""

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
