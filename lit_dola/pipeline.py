"""Janus with DoLa-static from Python: load once, then generate any number of times."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from lit_dola.callbacks.progress import RunProgress
from lit_dola.callbacks.quiet import quiet_lightning
from lit_dola.data.datamodule import PromptDataModule, encoder_of
from lit_dola.data.prompt_file import check_prompts
from lit_dola.data.requests import Failure, Prompt
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import Backend, load_janus
from lit_dola.janus.model import ImageBackbone
from lit_dola.janus.quantization import Quantization
from lit_dola.janus.tokenizer import PromptEncoder, Roles
from lit_dola.janus.vq import decode_pixels, to_pillow
from lit_dola.reports.generation import Generation
from lit_dola.runs.records import ImageRecord, versions
from lit_dola.tasks.generate import GeneratedImages, LitDoLa
from lit_dola.tasks.recommended import recommended_settings
from lit_dola.tasks.signature import takes_settings_of

_PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-true", torch.float16: "16-true"}


_OF_DIFFUSERS = {
    "prompt": "expected prompts",
    "guidance_scale": "expected cfg_weight, which means the same",
    "num_images_per_prompt": "expected parallel_size, which means the same",
    "generator": "expected seed, which with the indices of an image decides all of its noise",
    "num_inference_steps": "there is no such setting: an image has as many steps as tokens",
    "height": "there is no such setting: images have the size that the model was trained for",
    "width": "there is no such setting: images have the size that the model was trained for",
    "negative_prompt": "there is no such setting: the unconditional branch has no text",
    "output_type": "there is no such setting: the result has both images and tokens",
}
"""Arguments that users of diffusers may try, and what to say about them."""
_NOT_OF_GENERATE = {"model_path", "roles", "backend", "quantize", "inspect"}


class JanusPipeline:
    """A loaded Janus that generates images with or without DoLa-static.

    Args:
        janus: The model, on its device.
        checkpoint: The checkpoint that it was loaded from.
        roles: Role names in the prompt's conversation.

    Example:
        >>> pipeline = JanusPipeline.from_pretrained("checkpoints/shapes-janus")
        >>> pipeline.generate("a red circle", parallel_size=2).images[0].save("circle.png")
    """

    def __init__(self, janus: ImageBackbone, checkpoint: Checkpoint, roles: Roles = "auto") -> None:
        self.janus = janus
        self.checkpoint = checkpoint
        self.roles = roles

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
    ) -> "JanusPipeline":
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
        device = _check_device(device)
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        if dtype not in _PRECISIONS:
            raise UserError(f"dtype: {dtype}; expected one of {', '.join(map(str, _PRECISIONS))}")
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
        pipeline = cls(janus, checkpoint, roles)
        pipeline.encoder = encoder
        return pipeline

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The checkpoint's tokenizer."""
        return encoder_of(self.checkpoint, self.roles)

    @cached_property
    def recommended(self) -> dict[str, Any]:
        """Settings that the checkpoint recommends, which :meth:`generate` has as defaults."""
        return recommended_settings(str(self.checkpoint.folder))

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self.janus.language_model.embed_tokens.weight
        return weight

    def __repr__(self) -> str:
        size = sum(weight.numel() for weight in cast(Any, self.janus).parameters())
        name, dtype = self.checkpoint.name, str(self._weight.dtype).removeprefix("torch.")
        return f"<JanusPipeline {name}, {size / 1e6:,.1f}M parameters, {dtype}, {self.device}>"

    @takes_settings_of(LitDoLa, leave_out=_NOT_OF_GENERATE)
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        dola: bool = True,
        progress: bool = True,
        **settings: Any,
    ) -> Generation:
        """Generate the images that ``main.py predict`` makes of the same prompts and settings.

        The pipeline itself can be called in the same way. What is not given is as the checkpoint
        recommends, see :attr:`recommended`, and else as the signature says.

        Args:
            prompts: One or more prompts.
            dola: Whether to use DoLa; without it every step is exactly Janus' own.
            progress: Whether to show progress, if stderr is a terminal.
            settings: Those of :class:`lit_dola.LitDoLa`.

        Returns:
            Images, tokens, and how each image was made; it can be saved as a run.

        Raises:
            UserError: If a setting or prompt is invalid, or the model's logits are not finite.
        """
        for name in settings:
            if name in _OF_DIFFUSERS:
                raise UserError(f"{name}: a name of diffusers; {_OF_DIFFUSERS[name]}")
            if name in _NOT_OF_GENERATE:
                raise UserError(
                    f"{name}: not a setting of generate; expected it in from_pretrained, or a run"
                    " of predict"
                )
        fixed = {"model_path": self.checkpoint.name, "roles": self.roles, "dola": dola}
        model = LitDoLa.checked({**self.recommended, **fixed, **settings})
        model.janus = self.janus
        given = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(given, Iterable) or isinstance(given, Mapping | bytes):
            raise UserError(
                f"prompts: found {type(prompts).__name__}; expected a text or a list of texts"
            )
        data = _GivenPrompts([*given], model, self.checkpoint, self.encoder)
        with quiet_lightning():
            trainer = self._trainer(progress)
            predictions = trainer.predict(model, datamodule=data)
        made_with = {
            **model.record_settings(data.plan, trainer.precision),
            **model.batching(),
            "versions": versions(),
        }
        return _in_order(cast(list[GeneratedImages], predictions), made_with)

    __call__ = generate

    def decode(self, tokens: Tensor | npt.ArrayLike) -> list[Image.Image]:
        """Decode the tokens of images, as a generation or a run has saved them.

        Args:
            tokens: Integers ``(images, num_image_tokens)``, or ``(num_image_tokens,)`` for one
                image; a tensor, or what NumPy makes an array of.

        Raises:
            UserError: If they are no tokens of this model's images.

        Example:
            >>> (image,) = pipeline.decode(np.load("outputs/00000_a_cat/img_00.npy"))
        """
        images = self._check_tokens(tokens)
        with torch.inference_mode():
            decoded = [*decode_pixels(self.janus, images.to(self.device, torch.long))]
        if None in decoded:
            raise UserError(
                f"tokens: the VQ decoder's pixels of image {decoded.index(None)} are NaN or"
                " infinite; expected a dtype with more range, such as bfloat16"
            )
        return [to_pillow(pixels[0]) for pixels in decoded if pixels is not None]

    def _check_tokens(self, tokens: Any) -> Tensor:
        length, codes = self.janus.num_image_tokens, self.janus.image_head.linear.out_features
        expected = f"integers from 0 to {codes - 1} of shape (images, {length}) or ({length},)"
        try:
            found = tokens if isinstance(tokens, Tensor) else torch.from_numpy(np.asarray(tokens))
        except (TypeError, ValueError) as error:
            raise UserError(f"tokens: {error}; expected {expected}") from error
        images = found[None] if found.dim() == 1 else found
        if images.dim() != 2 or images.shape[1] != length:
            raise UserError(f"tokens: found shape {tuple(found.shape)}; expected {expected}")
        if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
            raise UserError(f"tokens: found {found.dtype}; expected {expected}")
        if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < codes:
            raise UserError(
                f"tokens: found {int(images.min())} to {int(images.max())}; expected {expected}"
            )
        return images

    def _trainer(self, progress: bool) -> Trainer:
        on_cpu = self.device.type == "cpu"
        precision: Any = _PRECISIONS[self._weight.dtype]
        return Trainer(
            accelerator="cpu" if on_cpu else "gpu",
            devices=1 if on_cpu else [self.device.index or 0],
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            callbacks=[RunProgress()] if progress else [],
        )


def _check_device(device: torch.device | str | None) -> torch.device:
    """Return the device of a model.

    Raises:
        UserError: If it is not one, or not on this machine.
    """
    gpus = torch.cuda.device_count()
    try:
        found = torch.device(device or ("cuda" if gpus else "cpu"))
    except RuntimeError as error:
        raise UserError(f"device: {device!r} is no device; expected cpu, cuda or cuda:1") from error
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise UserError(f"device: {found}, but this machine has {gpus} GPUs; expected cpu or fewer")
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"device: {found}; expected cpu or cuda")
    return found


class _GivenPrompts(PromptDataModule):
    """Prompts from a list in place of a file."""

    def __init__(
        self, prompts: list[str], model: LitDoLa, checkpoint: Checkpoint, encoder: PromptEncoder
    ) -> None:
        super().__init__(
            "prompts", model.model_path, model.roles, model.parallel_size, model.images_per_batch
        )
        self.prompts = prompts
        self.checkpoint = checkpoint
        self.encoder = encoder

    def read_prompts(self, skipped: list[Failure] | None) -> list[Prompt]:
        try:
            return check_prompts(self.prompts)
        except UserError as error:
            raise UserError(f"prompts: {error}") from error


def _in_order(predictions: list[GeneratedImages], settings: dict[str, Any]) -> Generation:
    """Order images by prompt and index, whatever batches they were made in."""
    found = {}
    for part in predictions:
        if part.failures:
            raise UserError(part.failures[0].reason)
        for place, request in enumerate(part.requests):
            how = part.forwards[place], part.at_once[place]
            record = ImageRecord(
                "", request.prompt.text, *request.key, settings, request.prompt.metadata, None, *how
            )
            image = to_pillow(part.pixels[place])
            image.info["prompt"] = record.prompt
            image.info["parameters"] = json.dumps(record.provenance(), ensure_ascii=False)
            found[request.key] = image, part.tokens[place], record
    images, tokens, records = zip(*(found[key] for key in sorted(found)))
    return Generation([*images], torch.stack(tokens), [*records])
