"""An image file that carries its own record: in text chunks (PNG), or in EXIF."""

import json
import re
from io import BytesIO
from typing import Any, Literal

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from lit_dola import __version__
from lit_dola.run_folder import Record

Format = Literal["jpg", "png", "webp"]

_MAX_EXIF_CHARACTERS = 2000
"""EXIF as a whole must stay under 64 KiB; a longer prompt is whole in ``metadata.jsonl``."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def encode_image(image: Image.Image, record: Record, format: Format, quality: int) -> bytes:
    """An image file.

    Args:
        image: The image, RGB.
        record: What made it.
        format: Of the file.
        quality: Of jpg and webp, 1 to 100.
    """
    if format == "png":
        info = PngInfo()
        info.add_itxt("prompt", _CONTROL.sub(" ", record["prompt"]))
        info.add_itxt("parameters", json.dumps(record, ensure_ascii=False))
        options: dict[str, Any] = {"pnginfo": info}
    else:
        options = {"exif": _exif(record), "quality": quality}
        if format == "jpg":
            options["subsampling"] = 0  # full colour resolution, as a quality of 95 asks for
    encoded = BytesIO()
    image.save(encoded, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[format], **options)
    return encoded.getvalue()


def _exif(record: Record) -> Image.Exif:
    """EXIF with the prompt as the description and the whole record, as JSON, as the comment."""
    prompt = record["prompt"][:_MAX_EXIF_CHARACTERS]
    description = _CONTROL.sub(" ", prompt)
    comment = json.dumps({**record, "prompt": prompt}, ensure_ascii=False)
    exif = Image.Exif()
    # Bytes, since Pillow would write "?" for what is not ASCII; readers take them as UTF-8.
    exif[ExifTags.Base.ImageDescription] = description.encode()
    exif[ExifTags.Base.Software] = f"lit-dola {__version__}"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + comment.encode(
        "utf-16-be"
    )
    return exif
