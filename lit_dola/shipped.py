"""Files of the project that come with the package."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_SHIPPED = ("configs/", "checkpoints/", "recipes/shapes/demo")
"""Prefixes of the paths that are shipped; a repository has other files, too."""


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
