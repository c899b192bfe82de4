"""Checks of settings beyond their types."""

from importlib.util import find_spec
from os import PathLike
from pathlib import Path

from lit_dola.errors import UserError


def require(package: str, setting: str, extra: str) -> None:
    """Check that an optional package is installed.

    Raises:
        UserError: If it is not installed.
    """
    if find_spec(package) is None:
        raise UserError(f'{package} is not installed; pip install -e ".[{extra}]"', setting=setting)


def given_path(setting: str, path: str | PathLike[str]) -> Path:
    """Return a path given by the user, with ``~`` expanded.

    Raises:
        UserError: If it is empty (e.g. from an unset shell variable), which would mean the working
            directory, or begins with ``~/`` where no home directory is known.
    """
    if not str(path).strip():
        raise UserError("empty", "a path, or . for the working directory", setting=setting)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        if Path(path).parts[0] != "~":  # no such user: a name that begins so, as for a shell
            return Path(path)
        raise UserError(f"{path}: {error}", "a path without ~", setting=setting) from error
