"""A loaded Janus on its device."""

import os
from functools import cached_property
from typing import Any, Self, cast

import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lit_dola.data.prompts import encoder_of
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import Backend, load_janus, load_understanding, move_model
from lit_dola.janus.model import ImageBackbone
from lit_dola.janus.quantization import Quantization
from lit_dola.janus.recommended import recommended_settings
from lit_dola.janus.tokenizer import PromptEncoder, Roles
from lit_dola.janus.understanding import UnderstandingJanus
from lit_dola.janus.vq import decode_pixels, to_pillow
from lit_dola.pipeline.arguments import check_device, check_tokens
from lit_dola.tasks.generate import LitDoLa

PRECISIONS: dict[torch.dtype, Any] = {
    torch.float32: "32-true",
    torch.bfloat16: "bf16-true",
    torch.float16: "16-true",
}
"""Precision of a trainer, by the dtype of weights."""


class LoadedJanus:
    """A loaded Janus: its parts and its device."""

    def __init__(
        self,
        janus: ImageBackbone,
        checkpoint: Checkpoint,
        roles: Roles = "auto",
        quantize: Quantization | None = None,
    ) -> None:
        self.janus = janus
        self.checkpoint = checkpoint
        self.roles = roles
        self.quantize = quantize

    @classmethod
    def from_pretrained(
        cls,
        model_path: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        roles: Roles = "auto",
        backend: Backend = "transformers",
        quantize: Quantization | None = None,
    ) -> Self:
        """Load a checkpoint.

        Args:
            model_path: As the setting ``model.model_path``: a folder, a name on the hub, or one of
                Janus-1.3B, Janus-Pro-1B, Janus-Pro-7B.
            device: Device of the model; by default a GPU if there is one, else the CPU.
            dtype: Dtype of the weights: float32, bfloat16 or float16; by default bfloat16 on a GPU,
                else float32.
            roles: As the setting ``model.roles``.
            backend: As the setting ``model.backend``.
            quantize: As the setting ``model.quantize``.

        Raises:
            UserError: If the checkpoint cannot be found or is incomplete, or cannot be quantized.
        """
        device = check_device(device)
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        if dtype not in PRECISIONS:
            raise UserError(
                str(dtype), f"one of {', '.join(map(str, PRECISIONS))}", setting="dtype"
            )
        checkpoint = Checkpoint.open(os.fspath(model_path))
        encoder = encoder_of(checkpoint, roles)
        janus = load_janus(
            checkpoint,
            pad_token_id=encoder.pad_token_id,
            dtype=dtype,
            device=device,
            backend=backend,
            quantize=quantize,
        )
        pipeline = cls(janus, checkpoint, roles, quantize)
        pipeline.encoder = encoder
        return pipeline

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The checkpoint's tokenizer."""
        return encoder_of(self.checkpoint, self.roles)

    @cached_property
    def recommended(self) -> dict[str, Any]:
        """Settings that the checkpoint recommends for images."""
        return recommended_settings(str(self.checkpoint.folder), LitDoLa)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.weight.device

    @property
    def weight(self) -> Tensor:
        """A weight of the language model, with its dtype and device."""
        weight: Tensor = self.janus.language_model.embed_tokens.weight
        return weight

    def __repr__(self) -> str:
        size = sum(weight.numel() for weight in cast(Any, self.janus).parameters())
        name, dtype = self.checkpoint.name, str(self.weight.dtype).removeprefix("torch.")
        return (
            f"<{type(self).__name__} {name}, {size / 1e6:,.1f}M parameters, {dtype}, {self.device}>"
        )

    @cached_property
    def understanding(self) -> UnderstandingJanus:
        """The parts that answer and rank, loaded when first needed.

        They share the language model of :attr:`janus`, unless its weights are quantized.
        """
        return load_understanding(
            self.checkpoint,
            pad_token_id=self.encoder.pad_token_id,
            dtype=self.weight.dtype,
            device=self.device,
            quantize=self.quantize,
            language_model=None if self.quantize else self.janus.language_model,
        )

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device, and return the pipeline.

        Raises:
            UserError: If there is no such device.
        """
        found = check_device(device)
        for model in (self.janus, self.__dict__.get("understanding")):
            if model is not None:
                move_model(model, found)
        return self

    def decode(self, tokens: Tensor | npt.ArrayLike) -> list[Image.Image]:
        """Decode the tokens of images, as saved by a generation or a run.

        Args:
            tokens: Integers ``(images, num_image_tokens)``, or ``(num_image_tokens,)`` for one
                image; a tensor or an array-like.

        Raises:
            UserError: If they are not tokens of this model's images.

        Example:
            >>> (image,) = pipeline.decode(np.load("outputs/00000_a_cat/img_00.npy"))
        """
        images = check_tokens(self.janus, tokens)
        with torch.inference_mode():
            decoded = [*decode_pixels(self.janus, images.to(self.device, torch.long))]
        if None in decoded:
            raise UserError(
                f"the VQ decoder's pixels of image {decoded.index(None)} are NaN or infinite",
                "a dtype with more range, such as bfloat16",
                setting="tokens",
            )
        return [to_pillow(pixels[0]) for pixels in decoded if pixels is not None]
