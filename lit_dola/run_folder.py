"""The folder of a run: names that are safe everywhere, files that are whole, lines that are kept.

A file has its final name only once it is whole and on the disk. Each rank appends the lines of its
own images to a file of its own, ``metadata.{rank}.jsonl``; the first rank merges them into
``metadata.jsonl``. An image whose line and files are there is done: the rest is made again.
"""

import errno
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from lit_dola.errors import UserError

Record = dict[str, Any]

_MAX_NAME_BYTES = 80
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+')
"""Separators, what Windows forbids, control characters, and marks that turn text around."""
_PROMPT_FOLDER = re.compile(r"\d{5,}(_.*)?")
_IMAGE_FILE = re.compile(r"img_(\d{2,})\.(jpg|png|webp|npy)")
GRID_FILE = "grid.jpg"
"""All images of a prompt in one."""
_KEYS = {"prompt", "prompt_index", "image_index"}
"""What every line says: which prompt and image it is of."""
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def image_path(prompt_index: int, prompt: str, image_index: int) -> Path:
    """``{index}_{prompt}/img_XX``, relative to the folder of the run and without a suffix.

    The index keeps apart prompts whose names are equal once cleaned, or equal but for case.
    """
    folder = f"{prompt_index:05}_{safe_name(prompt)}"
    return Path(folder.rstrip("_")) / f"img_{image_index:02}"


def safe_name(text: str, max_bytes: int = _MAX_NAME_BYTES) -> str:
    """Part of a file name that is safe on Linux, macOS and Windows; may be empty.

    White space becomes ``_``, Unicode is kept, and the length is bounded in UTF-8 bytes.
    """
    text = unicodedata.normalize("NFC", _UNSAFE.sub(" ", text))
    name = "_".join(text.split())
    return name.encode()[:max_bytes].decode(errors="ignore").rstrip("._ ")


def make_folder(folder: Path) -> None:
    """Make a folder of images; one that is there already must not lead elsewhere.

    Raises:
        OSError: If it cannot be made, or is a symbolic link.
    """
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "a symbolic link; expected a folder", str(folder)) from None


def write_atomically(path: Path, content: Iterable[bytes]) -> None:
    """Write a file under a temporary name, then rename it: no half-written file has its name.

    Not after a power cut either: the content is on the disk before the name is. It comes as bytes,
    since Pillow, given a file, does not notice that a full disk has taken a part only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a process that had this number before
    try:
        with temporary.open("xb") as file:  # made anew: never written through a link
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_png(path: Path, image: Image.Image, **options: Any) -> None:
    """Write an image as :func:`write_atomically` does; the options are Pillow's."""
    encoded = BytesIO()
    image.save(encoded, "PNG", **options)
    write_atomically(path, [encoded.getvalue()])


def append_line(path: Path, record: Record) -> None:
    """Append a record to a JSON Lines file, whole or not at all."""
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # POSIX, Windows
    file = os.open(path, flags, 0o666)
    try:
        before = os.fstat(file).st_size
        written = os.write(file, line)
        if written < len(line):  # the disk is full
            os.ftruncate(file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(file)


class Lines:
    """Lines of JSON by what they are of; the files of several ranks, and the one they merge into.

    Args:
        folder: Folder of the run.
        stem: ``metadata`` or ``errors``.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.path = folder / f"{stem}.jsonl"

    def of_rank(self, rank: int) -> Path:
        """The file that a rank appends to."""
        return self.path.with_suffix(f".{rank}.jsonl")

    def read(self) -> Iterator[tuple[Record, bytes]]:
        """Records and their lines; a line that a power cut tore is left out.

        Raises:
            UserError: If a line is of something else.
        """
        # The merged file last: a line that another run merges meanwhile is seen there.
        for path in (*self._parts(), self.path):
            with suppress(FileNotFoundError), path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        record = json.loads(line)
                    except ValueError:
                        continue
                    if not isinstance(record, dict) or not record.keys() >= _KEYS:
                        raise UserError(
                            f"{path}: line {number}: no record of an image; expected the folder of"
                            " a run, or an empty one"
                        )
                    yield record, line.rstrip(b"\n") + b"\n"

    def records(self) -> Iterator[Record]:
        """The records alone, see :meth:`read`."""
        return (record for record, _ in self.read())

    def merge(self, keep: Callable[[Record], bool] = lambda record: True) -> int:
        """Merge all files into one, sorted, a line an image; gives the number of lines."""
        parts = self._parts()
        lines = {_place(record): line for record, line in self.read() if keep(record)}
        if lines:
            write_atomically(self.path, (lines[place] for place in sorted(lines)))
        else:
            parts.append(self.path)
        for part in parts:
            part.unlink(missing_ok=True)
        return len(lines)

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.*.jsonl"))


def _place(record: Record) -> tuple[int, int]:
    """Where a line stands: by prompt and image, what concerns a whole prompt first."""
    image_index = record["image_index"]
    return record["prompt_index"], -1 if image_index is None else image_index


def image_files(folder: Path) -> set[str]:
    """Images and tokens that are in the folder of a run, relative to it, ``/`` between.

    Raises:
        UserError: If the folder of a prompt is a symbolic link.
    """
    return {
        f"{prompt_folder.name}/{match[0]}"
        for prompt_folder in prompt_folders(folder)
        for match in _image_names(prompt_folder)
    }


def images_of_prompt(prompt_folder: Path) -> list[Path]:
    """Image files in the folder of a prompt, in the order of their numbers."""
    found = {
        int(match[1]): prompt_folder / match[0]
        for match in _image_names(prompt_folder)
        if match[2] != "npy"
    }
    return [found[number] for number in sorted(found)]


def _image_names(prompt_folder: Path) -> Iterator[re.Match[str]]:
    """Names of the images and tokens in the folder of a prompt: number and suffix."""
    for entry in os.scandir(prompt_folder):
        match = _IMAGE_FILE.fullmatch(entry.name)
        if match and entry.is_file(follow_symlinks=False):
            yield match


def delete_half_written(folder: Path, before: float) -> None:
    """Delete what killed runs have left under temporary names.

    Args:
        folder: Folder of a run.
        before: Only what is older, in the file system's own time: another run may be writing.
    """
    for place in (folder, *prompt_folders(folder)):
        for entry in os.scandir(place):
            if _TEMPORARY.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry.path)


def prompt_folders(folder: Path) -> Iterator[Path]:
    """Folders of prompts in the folder of a run.

    Raises:
        UserError: If one is a symbolic link.
    """
    for entry in os.scandir(folder):
        if _PROMPT_FOLDER.fullmatch(entry.name):
            if entry.is_symlink():
                raise UserError(f"{entry.path}: a symbolic link; expected a folder")
            if entry.is_dir():
                yield Path(entry.path)


def delete_images(folder: Path) -> None:
    """Delete the images of a run, all that was made of them, and folders left empty."""
    for stem in ("metadata", "errors"):
        Lines(folder, stem).merge(keep=lambda record: False)
    files = image_files(folder)
    for name in files:
        (folder / name).unlink()
    for parent in {(folder / name).parent for name in files}:
        for made in (parent / GRID_FILE, *parent.glob("img_*.inspect.*")):
            made.unlink(missing_ok=True)
        if not any(parent.iterdir()):
            parent.rmdir()


def differences(
    records: Iterable[Record], settings: Mapping[str, Any], prompts: Mapping[int, str]
) -> list[str]:
    """What an earlier run had otherwise, one text a difference; empty where there is none.

    Args:
        records: Records of the images of the earlier run.
        settings: Settings by name, as a record has them.
        prompts: Prompts by their place in the file.
    """
    for record in records:
        found = [
            f"{name} was {json.dumps(record[name])}, is {json.dumps(value)}"
            for name, value in settings.items()
            if name in record and record[name] != value
        ]
        index = record["prompt_index"]
        if prompts.get(index, record["prompt"]) != record["prompt"]:
            found.append(f"prompt {index} was {record['prompt']!r:.60}, is {prompts[index]!r:.60}")
        if found:
            return found
    return []
