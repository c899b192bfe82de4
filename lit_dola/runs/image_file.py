"""Image files: encoding one that carries its record, checking that one is whole, reading one."""

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from lit_dola import __version__
from lit_dola.data.columns import Line
from lit_dola.errors import UserError
from lit_dola.runs.files import write_atomically
from lit_dola.runs.records import ImageRecord

Format = Literal["jpg", "png", "webp"]
SaveTokens = bool | Literal["logprobs"]
"""Save an image's tokens; logprobs: with their log-probabilities."""
Array = npt.NDArray[Any]
Arrays = dict[str, Array]
"""The tokens of an image, and perhaps their log-probabilities, by name."""

_MAX_EXIF_CHARACTERS = 2000
"""EXIF as a whole must stay under 64 KiB; ``metadata.jsonl`` has longer prompts in full."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


_ENDS = {".jpg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82", ".npz": b"PK\x05\x06"}
"""Last bytes of a complete file by format; an ``.npz`` has a few more behind them."""


def format_settings(format: Format, quality: int) -> dict[str, Any]:
    """Return the settings of an image's file, for its record; a lossless one has no quality.

    Raises:
        UserError: If the format is unknown, or the quality out of range.
    """
    if format not in get_args(Format):
        raise UserError(f"{format!r:.40}", " or ".join(get_args(Format)), setting="format")
    if not isinstance(quality, int) or isinstance(quality, bool) or not 1 <= quality <= 100:
        raise UserError(f"{quality!r:.40}", "an integer, 1 to 100", setting="quality")
    return {"format": format, "quality": None if format == "png" else quality}


def is_whole(path: Path) -> bool:
    """Return whether a file of a run exists and is not cut off, reading only its ends."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
            size = file.seek(0, 2)
            file.seek(max(0, size - 22))
            tail = file.read()
    except OSError:
        return False
    if path.suffix == ".webp":
        return head[:4] == b"RIFF" and size == 8 + int.from_bytes(head[4:8], "little")
    if path.suffix == ".npy":  # int32, after a header whose length it states
        shape = re.search(rb"'shape': \((\d+),\)", head)
        return shape is not None and size == 10 + int.from_bytes(head[8:10], "little") + 4 * int(
            shape[1]
        )
    if path.suffix == ".npz":
        return tail.startswith(_ENDS[".npz"])
    return tail.endswith(_ENDS[path.suffix])


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        UserError: If it is missing or broken.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"not readable as an image: {error}",
            "it as predict has written it; delete it, and the same command generates it again",
            at=path,
        ) from error


def read_image_bytes(path: Path) -> bytes:
    """Read an image file as it is.

    Raises:
        UserError: If it is missing or cut off.
    """
    if not is_whole(path):
        raise UserError(
            "missing or cut off",
            "a complete run: the same predict command generates what is missing",
            at=path,
        )
    return path.read_bytes()


def encode_image(image: Image.Image, record: Line, format: Format, quality: int) -> bytes:
    """Encode an image file.

    Args:
        image: The image, RGB.
        record: The image's provenance, which the file carries.
        format: Format of the file.
        quality: Quality of jpg and webp, 1 to 100.

    Returns:
        The content of the file.
    """
    if format == "png":
        info = PngInfo()
        info.add_itxt("prompt", _CONTROL.sub(" ", record["prompt"]))
        info.add_itxt("parameters", json.dumps(record, ensure_ascii=False))
        options: dict[str, Any] = {"pnginfo": info}
    else:
        options = {"exif": _exif(record), "quality": quality}
        if format == "jpg":
            options["subsampling"] = 0  # full colour resolution, as the default quality deserves
    encoded = BytesIO()
    image.save(encoded, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[format], **options)
    return encoded.getvalue()


def write_image(
    folder: Path,
    record: ImageRecord,
    image: Image.Image,
    format: Format,
    quality: int,
    tokens: Arrays | None = None,
) -> None:
    """Write the image of a record, with its tokens before it if they are given.

    Args:
        folder: Folder of the run.
        record: What the file carries, and where it lies; its folder must exist.
        image: The image, RGB.
        format: Format of the file.
        quality: Quality of jpg and webp, 1 to 100.
        tokens: Arrays to lie next to it: ``tokens``, perhaps with their log-probabilities.
    """
    if tokens is not None:
        content = BytesIO()
        alone = len(tokens) == 1
        if alone:
            np.save(content, tokens["tokens"])
        else:
            np.savez(content, allow_pickle=False, **tokens)
        path = tokens_file(record.file_name, alone or "logprobs")
        write_atomically(folder / path, [content.getvalue()])
    encoded = encode_image(image, record.provenance(), format, quality)
    write_atomically(folder / record.file_name, [encoded])


def tokens_file(file: str, save_tokens: SaveTokens = True) -> str:
    """Return the path of an image's tokens: ``.npy``, with log-probabilities ``.npz``."""
    return Path(file).with_suffix(".npz" if save_tokens == "logprobs" else ".npy").as_posix()


def find_tokens(folder: Path, file: str) -> Path | None:
    """Return the file of an image's tokens, of either kind; None if there is none.

    Args:
        folder: Folder of the run.
        file: Path of the image, relative to it.
    """
    kinds: tuple[SaveTokens, ...] = (True, "logprobs")
    paths = (folder / tokens_file(file, kind) for kind in kinds)
    return next((path for path in paths if path.is_file()), None)


def read_token_arrays(path: Path) -> Arrays:
    """Read the tokens of an image, and their log-probabilities if they are there.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        found = np.load(path)
        if isinstance(found, np.ndarray):
            return {"tokens": found}
        with found:
            return {name: found[name] for name in ("tokens", "logprob", "sampled_logprob")}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise UserError(f"not readable as tokens: {error}", at=path) from error


def _exif(record: Line) -> Image.Exif:
    """Return EXIF with the prompt as the description and the record, as JSON, as the comment."""
    prompt = record["prompt"][:_MAX_EXIF_CHARACTERS]
    description = _CONTROL.sub(" ", prompt)
    comment = json.dumps({**record, "prompt": prompt}, ensure_ascii=False)
    exif = Image.Exif()
    # Bytes, because Pillow would write "?" for non-ASCII characters; readers expect UTF-8.
    exif[ExifTags.Base.ImageDescription] = description.encode()
    exif[ExifTags.Base.Software] = f"lit-dola {__version__}"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + comment.encode(
        "utf-16-be"
    )
    return exif
