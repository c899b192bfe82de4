"""From image tokens to pixels, and back."""

from collections.abc import Iterator
from logging import getLogger
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

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


def from_pillow(image: Image.Image, size: int) -> Tensor:
    """Scale an RGB image to a square, cut at its longer sides, for :func:`encode_pixels`.

    Args:
        image: The image.
        size: Side of the square in pixels, see :attr:`Checkpoint.image_side`.

    Returns:
        Float32 ``(3, size, size)`` in [-1, 1].
    """
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


@torch.no_grad()
def encode_pixels(vq_model: Any, pixels: Tensor) -> Tensor:
    """Encode images to tokens.

    Codes are compared by their direction, as in DeepSeek's ``VectorQuantizer``; transformers' own
    ``encode`` compares lengths, too, which its decoder ignores.

    Args:
        vq_model: A ``JanusVQVAE`` with its encoder.
        pixels: ``(images, 3, height, width)`` in [-1, 1].

    Returns:
        Int64 ``(images, num_image_tokens)``.
    """
    weight = vq_model.quant_conv.weight
    latents = vq_model.quant_conv(vq_model.encoder(pixels.to(weight)))
    codes = F.normalize(vq_model.quantize.embedding.weight.float(), dim=-1)
    similarities = F.normalize(latents.float(), dim=1).flatten(2).transpose(1, 2) @ codes.T
    return similarities.argmax(dim=-1)
