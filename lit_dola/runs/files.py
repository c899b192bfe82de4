"""Writing files that are always whole, under names that are safe everywhere.

A file gets its final name only once it is complete and on the disk.
"""

import errno
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from PIL import Image

_MAX_NAME_BYTES = 80
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+')
"""Separators, characters that Windows forbids, control characters, and text direction marks."""
TEMPORARY_FILE = re.compile(r"\..+\.[0-9a-f]+\.tmp")
"""Names that :func:`write_atomically` uses for incomplete files."""


def safe_name(text: str, max_bytes: int = _MAX_NAME_BYTES) -> str:
    """Return part of a file name that is safe on Linux, macOS and Windows; it may be empty.

    White space becomes ``_``, Unicode is kept, and the length is limited in UTF-8 bytes.

    Example:
        >>> safe_name("a red/blue apple...")
        'a_red_blue_apple'
    """
    text = unicodedata.normalize("NFC", _UNSAFE.sub(" ", text))
    name = "_".join(text.split())
    return name.encode()[:max_bytes].decode(errors="ignore").rstrip("._ ")


def make_folder(folder: Path) -> None:
    """Create a folder if it does not exist; an existing one must not be a link to elsewhere."""
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "a symbolic link; expected a folder", str(folder)) from None


def write_atomically(path: Path, content: Iterable[bytes]) -> None:
    """Write a file as :func:`atomic_file` does.

    The content is bytes because Pillow, writing to a file, does not notice that a full disk took
    only a part.
    """
    with atomic_file(path) as file:
        file.writelines(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file under a temporary name, and rename it, so that its name means it is complete.

    This holds even after a power cut: the content is on the disk before the name is.
    """
    # Not the process id: containers that share a volume have equal ones.
    temporary = path.with_name(f".{path.name}.{token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:  # a new file: never written through a link
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # of the file that the user knows
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_png(path: Path, image: Image.Image, **options: Any) -> None:
    """Write an image as :func:`write_atomically` does; the options are Pillow's."""
    encoded = BytesIO()
    image.save(encoded, "PNG", **options)
    write_atomically(path, [encoded.getvalue()])


def to_json(record: Mapping[str, Any]) -> bytes:
    """Return a record as a line of JSON Lines.

    Raises:
        ValueError: If a number is infinite or NaN, which JSON does not have.
    """
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a JSON Lines file, completely or not at all."""
    line = to_json(record)
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
