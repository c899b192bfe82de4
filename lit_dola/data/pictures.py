"""Reading user-supplied pictures."""

import re
import warnings
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lit_dola.errors import UserError
from lit_dola.messages import first_line

Colour = tuple[int, int, int]
_SIXTEEN_BITS = 65535.0


class LoadedPicture:
    """A picture that is in memory rather than in a file."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image


class InlinePicture:
    """A picture that a file of entries contains as base64, or as a ``data:`` URL of it.

    Args:
        content: The picture's file.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the picture in a text; None if the text is a name rather than a picture.

        Raises:
            UserError: If it begins like a picture, but is not base64.
        """
        url = _DATA_URL.match(text)
        if url is None and text[:5].lower() == "data:":
            raise UserError(f"{text:.40}…", "data: with ;base64,")
        if url is None and not (
            _BASE64.match(text) and (len(text) > _LONGEST_NAME or _BASE64_ONLY.fullmatch(text))
        ):
            return None
        encoded = "".join(text[url.end() if url else 0 :].split()).rstrip("=")
        try:
            return cls(b64decode(encoded + "=" * (-len(encoded) % 4), validate=True))
        except ValueError as error:
            raise UserError(f"{text:.40}… is not base64: {error}", "a whole picture") from error

    @cached_property
    def name(self) -> str:
        """Its path within the folder of a run, which its content determines."""
        with _opened(self) as image:
            suffix = "jpg" if image.format in ("JPEG", "MPO") else str(image.format).lower()
        return f"{INLINE_FOLDER}/{digest_of(self)}.{suffix}"


INLINE_FOLDER = "pictures"
_LONGEST_NAME = 4096
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_BASE64 = re.compile(r"\s*(/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkq|TU0AK)")
"""First characters of a JPEG, PNG, GIF, WebP, BMP or TIFF in base64."""
_BASE64_ONLY = re.compile(r"[A-Za-z0-9+/\s]{40,}=*\s*")
Picture = Path | LoadedPicture | InlinePicture


def read_picture(picture: Picture, background: Colour = (127, 127, 127)) -> Image.Image:
    """Read a picture as RGB: its first frame, upright, without transparency.

    Args:
        picture: A file of any format that Pillow reads, its content, or an image of any mode.
        background: Colour behind transparent pixels.

    Raises:
        UserError: If it is not an image, is broken, has more pixels than Pillow's limit against
            decompression bombs, or numbers that are no shades of grey.

    Example:
        >>> picture = read_picture(Path("photo.jpg"))
    """
    with _opened(picture) as image:
        image.load()
        if not (image.width and image.height):
            raise UserError(f"{image.width} x {image.height} pixels", "at least one")
        return _to_rgb(_upright(image), background, is_png=image.format == "PNG")


def check_picture(picture: Picture) -> None:
    """Check the header of a file, without reading its pixels.

    Raises:
        UserError: As :func:`read_picture`, except that the pixels may still be broken.
    """
    with _opened(picture):
        pass


def digest_of(picture: Picture) -> str:
    """Return the first half of the SHA-256 of a picture's file; empty if it has none."""
    if isinstance(picture, LoadedPicture):
        return ""
    content = picture.content if isinstance(picture, InlinePicture) else picture.read_bytes()
    return sha256(content).hexdigest()[:32]


@contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    """Open an image; errors, also later ones, become one line."""
    path = picture if isinstance(picture, Path) else "picture"
    try:
        if isinstance(picture, LoadedPicture):
            yield picture.image
            return
        if isinstance(picture, Path) and not picture.is_file():
            found = "a folder" if picture.is_dir() else "nothing"
            raise UserError(f"found {found}", "an image file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # of odd metadata
            with Image.open(_file_of(picture)) as image:
                yield image
    except UserError as error:
        raise error.within(path) from error.__cause__
    except UnidentifiedImageError as error:
        raise UserError(
            "not an image", "JPEG, PNG or another format that Pillow reads", at=path
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"more than {Image.MAX_IMAGE_PIXELS} pixels, a possible decompression bomb",
            "a smaller image",
            at=path,
        ) from error
    except Exception as error:  # Pillow's decoders raise any exception for a broken file
        raise UserError(f"a broken image: {first_line(error)}", "a whole one", at=path) from error


def _file_of(picture: Path | InlinePicture) -> Path | BytesIO:
    return BytesIO(picture.content) if isinstance(picture, InlinePicture) else picture


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its metadata say; broken metadata are ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's parsers of metadata raise any exception
        return image


def _to_rgb(image: Image.Image, background: Colour, is_png: bool) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image, is_png)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(behind, image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image, is_png: bool) -> Image.Image:
    """Scale the numbers of 16 bits, or fractions of 1; Pillow's own conversion would clip them.

    Raises:
        UserError: If a number is not finite, negative, or larger than 16 bits hold.
    """
    numbers = np.asarray(image, dtype=np.float64)
    if odd := np.count_nonzero(~np.isfinite(numbers)):
        raise UserError(f"{odd:,} of {numbers.size:,} pixels are not finite", "numbers")
    least, largest = numbers.min(initial=0), numbers.max(initial=0)
    if least < 0 or largest > _SIXTEEN_BITS:
        raise UserError(
            f"pixels from {least:g} to {largest:g}", "0 to 1 (fractions), to 255 or to 65535"
        )
    whole = 1.0 if largest <= 1 and image.mode == "F" else 255.0 if largest <= 255 else 65535.0
    if image.mode.startswith("I;16") or is_png:  # of 16 bits, even if it is dark
        whole = _SIXTEEN_BITS
    return Image.fromarray((numbers / whole * 255).clip(0, 255).round().astype(np.uint8))
