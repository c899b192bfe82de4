"""Reading user-supplied pictures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lit_dola.errors import UserError
from lit_dola.messages import first_line

Colour = tuple[int, int, int]


class LoadedPicture:
    """A picture that is in memory rather than in a file."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image


Picture = Path | LoadedPicture


def read_picture(picture: Picture, background: Colour = (127, 127, 127)) -> Image.Image:
    """Read a picture as RGB: its first frame, upright, without transparency.

    Args:
        picture: A file of any format that Pillow reads, or an image of any mode.
        background: Colour behind transparent pixels.

    Raises:
        UserError: If it is not an image, is broken, or has more pixels than Pillow's limit against
            decompression bombs.

    Example:
        >>> picture = read_picture(Path("photo.jpg"))
    """
    with _opened(picture) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), background)


def check_picture(picture: Picture) -> None:
    """Check the header of a file, without reading its pixels.

    Raises:
        UserError: As :func:`read_picture`, except that the pixels may still be broken.
    """
    with _opened(picture):
        pass


@contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    """Open an image; errors, also later ones, become one line."""
    if isinstance(picture, LoadedPicture):
        yield picture.image
        return
    path = picture
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing"
            raise UserError(f"found {found}", "an image file", at=path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # of odd metadata
            with Image.open(path) as image:
                yield image
    except UserError:
        raise
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


def _to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(behind, image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale the numbers of 16 bits, or fractions of 1; Pillow's own conversion would clip them."""
    numbers = np.asarray(image, dtype=np.float64)
    largest = numbers.max(initial=0)
    whole = 1.0 if largest <= 1 and image.mode == "F" else 255.0 if largest <= 255 else 65535.0
    if image.mode.startswith("I;16"):
        whole = 65535.0
    return Image.fromarray((numbers / whole * 255).clip(0, 255).round().astype(np.uint8))
