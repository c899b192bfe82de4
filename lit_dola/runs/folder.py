"""The folder of a run: paths of images, and the existing ones."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from lit_dola.data.pictures import INLINE_FOLDER
from lit_dola.data.requests import Failure
from lit_dola.errors import UserError
from lit_dola.registry import record_types
from lit_dola.runs.files import TEMPORARY_FILE, safe_name
from lit_dola.runs.ranks import BEST
from lit_dola.runs.record_log import RecordLog

_PROMPT_FOLDER = re.compile(r"\d{5,}(_.*)?")
_GROUP = re.compile(r"\d{5,}-\d{5,}")
_IMAGE_FILE = re.compile(r"img_(\d{2,})\.(jpg|png|webp|npy|npz|inspect\.(?:png|npz))")
_INLINE_FILE = re.compile(r"[0-9a-f]{32}\.\w+")
GRID_FILE = "grid.jpg"
"""All images of a prompt in one."""


def image_path(
    prompt_index: int, prompt: str, image_index: int, folders_per_group: int | None = None
) -> Path:
    """Return ``{index}_{prompt}/img_XX``, relative to the run's folder and without a suffix.

    The index separates prompts whose cleaned names are equal, or differ only in case.

    Args:
        prompt_index: Index of the prompt.
        prompt: The prompt.
        image_index: Index of the image.
        folders_per_group: How many folders of prompts share a folder such as ``02000-02999``; None:
            all are in the run's folder.
    """
    folder = Path(f"{prompt_index:05}_{safe_name(prompt)}".rstrip("_"))
    if folders_per_group is not None:
        first = prompt_index - prompt_index % folders_per_group
        folder = Path(f"{first:05}-{first + folders_per_group - 1:05}") / folder
    return folder / f"img_{image_index:02}"


def image_files(folder: Path) -> set[str]:
    """Return images, token files and inspections of a run, relative to its folder, with ``/``."""
    return {
        f"{prompt_folder.relative_to(folder).as_posix()}/{match[0]}"
        for prompt_folder in prompt_folders(folder)
        for match in _image_names(prompt_folder)
    }


class RunFiles:
    """The images and the files beside them, listed lazily, one prompt after another.

    Raises:
        UserError: If the folder of a prompt is a symbolic link.
    """

    def __init__(self, folder: Path) -> None:
        self._folders = {
            path.relative_to(folder).as_posix(): path for path in prompt_folders(folder)
        }
        self._list = lru_cache(maxsize=256)(self._list_prompt)  # ranks are at different prompts

    def modified(self, file: str) -> float | None:
        """Return when a file was last written, as a POSIX timestamp; None if it is not there.

        Args:
            file: Its path relative to the run's folder, with ``/``.
        """
        prompt_folder, _, name = file.rpartition("/")
        return self._list(prompt_folder).get(name)

    def _list_prompt(self, name: str) -> dict[str, float]:
        path = self._folders.get(name)
        if path is None:
            return {}
        return {
            entry.name: entry.stat(follow_symlinks=False).st_mtime for entry in _image_entries(path)
        }


def images_of_prompt(prompt_folder: Path) -> list[Path]:
    """Return the image files in the folder of a prompt, in the order of their indices."""
    found = {
        int(match[1]): prompt_folder / match[0]
        for match in _image_names(prompt_folder)
        if match[2] in ("jpg", "png", "webp")
    }
    return [found[number] for number in sorted(found)]


def _image_names(prompt_folder: Path) -> Iterator[re.Match[str]]:
    """Yield matches of index and suffix for the images of a prompt and the files beside them."""
    for entry in _image_entries(prompt_folder):
        match = _IMAGE_FILE.fullmatch(entry.name)
        assert match is not None
        yield match


def _image_entries(prompt_folder: Path) -> Iterator["os.DirEntry[str]"]:
    for entry in os.scandir(prompt_folder):
        if _IMAGE_FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            yield entry


def delete_half_written(folder: Path, before: float) -> None:
    """Delete incomplete files that killed runs left behind.

    Args:
        folder: Folder of a run.
        before: Delete only files older than this, in the file system's own time: another run may
            be writing.
    """
    pictures = [path for path in [folder / INLINE_FOLDER] if path.is_dir()]
    for place in (folder, *pictures, *prompt_folders(folder)):
        for entry in os.scandir(place):
            if entry.name.endswith(".tmp") and TEMPORARY_FILE.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry.path)


def prompt_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of prompts in the folder of a run, and in the groups there."""
    for entry in os.scandir(folder):
        is_group = _GROUP.fullmatch(entry.name)
        if is_group or _PROMPT_FOLDER.fullmatch(entry.name):
            if entry.is_symlink():
                raise UserError("a symbolic link", "a folder", at=entry.path)
            if is_group and entry.is_dir():
                yield from prompt_folders(Path(entry.path))
            elif entry.is_dir():
                yield Path(entry.path)


def delete_results(folder: Path) -> None:
    """Delete the results of a run, everything derived from them, and folders left empty."""
    for kind in (*record_types().values(), Failure):
        RecordLog(folder, kind).merge(keep=lambda line: None)
    (folder / BEST).unlink(missing_ok=True)
    pictures = {
        f"{INLINE_FOLDER}/{path.name}"
        for path in folder.glob(f"{INLINE_FOLDER}/*")
        if _INLINE_FILE.fullmatch(path.name)
    }
    files = image_files(folder) | pictures
    for name in files:
        (folder / name).unlink()
    for parent in {(folder / name).parent for name in files}:
        (parent / GRID_FILE).unlink(missing_ok=True)
        for empty in (parent, parent.parent):
            if empty != folder and not any(empty.iterdir()):
                empty.rmdir()
