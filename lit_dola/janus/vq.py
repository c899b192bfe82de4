"""From image tokens to pixels."""

from collections.abc import Iterator
from logging import getLogger

import torch
from PIL import Image
from torch import Tensor, nn

from lit_dola.janus.model import ImageBackbone
from lit_dola.messages import first_line

_log = getLogger(__name__)


def decode_pixels(janus: ImageBackbone, tokens: Tensor) -> Iterator[Tensor | None]:
    """Decode images one at a time, so that an image's bytes do not depend on its batch.

    The last bit of a convolution depends on the size of its batch.

    Args:
        janus: The model.
        tokens: Int64 ``(images, num_image_tokens)``.

    Yields:
        Uint8 ``(1, 3, height, width)``, on the CPU; None if the pixels are NaN or infinite.
    """
    for image in range(len(tokens)):
        pixels = _decode(janus, tokens[image : image + 1])
        # An infinity would become white or black, and a NaN an arbitrary value.
        yield to_uint8(pixels).cpu() if pixels.isfinite().all() else None


def _decode(janus: ImageBackbone, tokens: Tensor) -> Tensor:
    """Decode an image; if it fails in the memory format channels-last, in torch's own."""
    try:
        return janus.decode_image_tokens(tokens)
    except RuntimeError as error:
        vq_model = getattr(janus, "vq_model", None)
        if vq_model is None or isinstance(error, torch.OutOfMemoryError) or not _is_last(vq_model):
            raise
        _log.warning("VQ decoder in channels-last: %s; continuing without", first_line(error))
        vq_model.to(memory_format=torch.contiguous_format)
    return janus.decode_image_tokens(tokens)


def _is_last(model: nn.Module) -> bool:
    return not all(weight.is_contiguous() for weight in model.parameters())


def to_uint8(pixels: Tensor) -> Tensor:
    """Convert pixels in [-1, 1] to uint8, truncating rather than rounding as DeepSeek's script."""
    return ((pixels.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)


def to_pillow(pixels: Tensor) -> Image.Image:
    """Convert uint8 ``(3, height, width)`` to an RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
