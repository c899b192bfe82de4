"""Images as they look while their tokens are being drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from PIL import Image
from torch import Tensor

from lit_dola.data.requests import ImageRequest
from lit_dola.janus.model import ImageBackbone
from lit_dola.janus.vq import decode_pixels, to_pillow

GREY = (128, 128, 128)
"""Colour of parts without tokens."""
_PIXELS_PER_TOKEN = 16


@dataclass(frozen=True, eq=False)
class ImageStep:
    """A batch of images after a decoding step.

    Example:
        >>> def show(step):
        ...     if step.index % 96 == 0:
        ...         step.preview()[0].save("so_far.png")
        >>> pipeline("a red circle", callback_on_step=show)
    """

    requests: Sequence[ImageRequest]
    """The images of the batch: their prompts and indices."""
    index: int
    """Tokens drawn per image, from 1; with speculative decoding on average."""
    count: int
    """Tokens per image."""
    tokens: Tensor
    """The tokens so far, int64 ``(images, count)`` on the model's device, -1 where there is none
    yet. They change with the next step: clone what you keep."""
    janus: ImageBackbone
    calls: Sequence[int] = ()
    """Number of the call of each image, where several calls share a batch."""

    def preview(self, places: Sequence[int] | None = None) -> list[Image.Image]:
        """Decode what is drawn so far; rows of tokens that are not complete are left grey.

        It takes as long as decoding the finished images, so most callers want it at some steps
        only.

        Args:
            places: Places of the images in the batch; None: all.
        """
        side = isqrt(self.count)
        chosen = self.tokens if places is None else self.tokens[[*places]]
        rows = ((chosen >= 0).sum(dim=1) // side).tolist()
        # Below what is drawn, the last row goes on: the decoder looks beyond each token.
        filled = [_fill(tokens, int(done) * side, side) for tokens, done in zip(chosen, rows)]
        with torch.inference_mode():
            decoded = [*decode_pixels(self.janus, torch.stack(filled))]
        return [_cover(pixels, side, int(done)) for pixels, done in zip(decoded, rows)]


OnImageStep = Callable[[ImageStep], None]


def _fill(tokens: Tensor, drawn: int, side: int) -> Tensor:
    if not drawn:
        return torch.zeros_like(tokens)
    rest = (len(tokens) - drawn) // side
    return torch.cat([tokens[:drawn], tokens[drawn - side : drawn].repeat(rest)])


def _cover(pixels: Tensor | None, side: int, rows: int) -> Image.Image:
    """Return an image that is grey where nothing is drawn, or where pixels are not finite."""
    if pixels is None:
        return Image.new("RGB", (side * _PIXELS_PER_TOKEN,) * 2, GREY)
    image = to_pillow(pixels[0])
    image.paste(GREY, (0, rows * image.height // side, image.width, image.height))
    return image
