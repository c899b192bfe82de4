"""From an image to what the vision tower takes, as DeepSeek's code does it, or as transformers'."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.files import read_json

Preprocess = Literal["deepseek", "transformers"]
"""Resize rounding: DeepSeek's code truncates the scaled side, transformers' rounds it."""

_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class PixelProcessor:
    """Scales an image to the vision tower's size, pads it to a square and normalizes it.

    Source: ``VLMImageProcessor`` of DeepSeek's code, and ``JanusImageProcessor`` of transformers.
    """

    size: int
    """Side of the square in pixels."""
    min_size: int = 14
    """Least length of the shorter side, before the padding."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    preprocess: Preprocess = "deepseek"

    @classmethod
    def of_checkpoint(
        cls, checkpoint: Checkpoint, preprocess: Preprocess = "deepseek"
    ) -> "PixelProcessor":
        """Return what prepares pictures for a checkpoint's vision tower."""
        processor = cls.of(checkpoint.folder, preprocess)
        expected = checkpoint.config.vision_config.image_size
        if processor.size != expected:
            raise UserError(
                f"{checkpoint.folder / _FILE}: the image's size is {processor.size}",
                f"{expected}, as in config.json",
            )
        return processor

    @classmethod
    def of(cls, folder: Path, preprocess: Preprocess = "deepseek") -> "PixelProcessor":
        """Read a checkpoint's ``preprocessor_config.json``, in either layout."""
        path = folder / _FILE
        config = read_json(path)
        size = config.get("image_size") or config.get("size")
        if isinstance(size, dict):
            size = size.get("height")
        if type(size) is not int or size < 1:
            raise UserError(f"the image's size is {size!r}", "a number of pixels", at=path)
        return cls(
            size,
            _number(path, config, "min_size", min(14, size), int, size),
            _three(path, config, "image_mean"),
            _three(path, config, "image_std"),
            _number(path, config, "rescale_factor", 1 / 255, float, 1),
            preprocess,
        )

    @property
    def background(self) -> tuple[int, int, int]:
        """Colour of the padding."""
        red, green, blue = (int(255 * part) for part in self.mean)
        return red, green, blue

    def to_square(self, image: Image.Image) -> Image.Image:
        """Scale an RGB image so that its longer side fits, and pad the other one."""
        width, height = image.size
        longer = max(width, height)
        scaled = [max(self._scaled(side, longer), self.min_size) for side in (width, height)]
        resized = image.resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC)
        side = max(scaled)
        square = Image.new("RGB", (side, side), self.background)
        square.paste(resized, ((side - scaled[0]) // 2, (side - scaled[1]) // 2))
        return square

    def _scaled(self, side: int, longer: int) -> int:
        if self.preprocess == "deepseek":
            return int(side / longer * self.size)
        return round(side * (self.size / longer))

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels of an RGB image, float32 ``(3, size, size)``."""
        channels = np.asarray(self.to_square(image)).transpose(2, 0, 1)
        values = (channels.astype(np.float64) * self.rescale_factor).astype(np.float32)
        mean, std = (
            np.array(part, dtype=np.float32)[:, None, None] for part in (self.mean, self.std)
        )
        return torch.from_numpy((values - mean) / std)


def _number(
    path: Path,
    config: dict[str, Any],
    name: str,
    default: float,
    kind: Callable[[Any], Any],
    most: float,
) -> Any:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise UserError(f"{name} is {value!r:.40}", f"a number above 0, up to {most}", at=path)
    return kind(value)


def _three(path: Path, config: dict[str, Any], name: str) -> tuple[float, float, float]:
    value = config.get(name, [0.5] * 3)
    least = 1e-6 if name == "image_std" else 0
    numbers = isinstance(value, list) and all(
        type(part) in (int, float) and least <= part <= 1 for part in value
    )
    if not numbers or len(value) != 3:
        raise UserError(f"{name} is {value!r:.60}", f"three numbers, {least} to 1", at=path)
    return value[0], value[1], value[2]
