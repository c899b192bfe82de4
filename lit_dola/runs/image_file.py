"""Encoding an image file that carries its own record, in PNG text chunks or in EXIF."""

import json
import re
from io import BytesIO
from typing import Any, Literal

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from lit_dola import __version__
from lit_dola.runs.records import Record

Format = Literal["jpg", "png", "webp"]

_MAX_EXIF_CHARACTERS = 2000
"""EXIF as a whole must stay under 64 KiB; ``metadata.jsonl`` has longer prompts in full."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def encode_image(image: Image.Image, record: Record, format: Format, quality: int) -> bytes:
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


def _exif(record: Record) -> Image.Exif:
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
