"""Reading the small files of a checkpoint, which may be broken in any way."""

import json
from pathlib import Path
from typing import Any

from lit_dola.errors import UserError

_LFS = b"version https://git-lfs"
_PACKAGE = Path(__file__).parents[1]
_SHIPPED = ("configs/", "checkpoints/", "recipes/shapes/demo")
"""How the paths of files begin that come with the package; a repository has others, too."""


def shipped_root() -> Path:
    """Return the folder of the project's files: that in the wheel, or the repository itself."""
    in_wheel = _PACKAGE / "shipped"
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent


def shipped(path: str) -> Path | None:
    """Return a file or folder that comes with the package, by its path in the repository.

    Example:
        >>> shipped("checkpoints/shapes-janus").is_dir()
        True
    """
    found = shipped_root() / path
    return found if path.startswith(_SHIPPED) and found.exists() else None


def refuse_pointer(path: Path) -> None:
    """Check that a file is not a Git LFS pointer, which stands for a file that was not fetched.

    Raises:
        UserError: If it is one, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_LFS)) == _LFS
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror}") from error
    if is_pointer:
        raise UserError(
            f"{path}: a Git LFS pointer in place of the file; expected the file itself, which"
            " 'git lfs pull' fetches"
        )


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8.

    Raises:
        UserError: If it cannot be read.
    """
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as UTF-8: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if there is no such file.

    Raises:
        UserError: If it is not JSON, or no object.
    """
    if not path.is_file():
        return {}
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not readable as JSON: nested too deeply") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {content!r:.40}; expected a JSON object")
    return content
