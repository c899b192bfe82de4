"""Reading the small files of a checkpoint, which may be broken in any way."""

import json
from pathlib import Path
from typing import Any

from lit_dola.errors import UserError

_LFS = b"version https://git-lfs"


def refuse_pointer(path: Path) -> None:
    """Check that a file is not a Git LFS pointer, which stands for a file that was not fetched."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_LFS)) == _LFS
    except OSError as error:
        raise UserError(f"not readable: {error.strerror}", at=path) from error
    if is_pointer:
        raise UserError(
            "a Git LFS pointer in place of the file",
            "the file itself, which 'git lfs pull' fetches",
            at=path,
        )


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8."""
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"not readable as UTF-8: {error}", at=path) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if there is no such file."""
    if not path.is_file():
        return {}
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"not readable as JSON: {error}", at=path) from error
    except RecursionError as error:
        raise UserError("not readable as JSON: nested too deeply", at=path) from error
    if not isinstance(content, dict):
        raise UserError(f"found {content!r:.40}", "a JSON object", at=path)
    return content
