"""Janus with DoLa-static from Python: load once, then generate any number of times."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from lit_dola.callbacks.progress import GenerationProgressBar, quiet_lightning
from lit_dola.data.datamodule import PromptDataModule
from lit_dola.data.prompt_file import check_prompts
from lit_dola.data.requests import Failure, Prompt
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import Backend, load_janus
from lit_dola.janus.model import Backbone
from lit_dola.janus.tokenizer import PromptEncoder, Roles
from lit_dola.janus.vq import decode_pixels, to_pillow
from lit_dola.tasks.generate import GeneratedImages, LitDoLa

_PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-true", torch.float16: "16-true"}


class Generation(NamedTuple):
    """The images of one call, ordered by prompt, then by index."""

    images: list[Image.Image]
    """RGB."""
    tokens: Tensor
    """Int32 ``(images, num_image_tokens)``, on the CPU."""


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

    def __init__(self, janus: Backbone, checkpoint: Checkpoint, roles: Roles = "auto") -> None:
        self.janus = janus
        self.checkpoint = checkpoint
        self.roles = roles

    @classmethod
    def from_pretrained(
        cls,
        model_path: str,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        roles: Roles = "auto",
        backend: Backend = "transformers",
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

        Raises:
            UserError: If the checkpoint cannot be found or is incomplete.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        if dtype not in _PRECISIONS:
            raise UserError(f"dtype: {dtype}; expected one of {', '.join(map(str, _PRECISIONS))}")
        checkpoint = Checkpoint.open(model_path)
        encoder = PromptEncoder(checkpoint.folder, roles, name=model_path)
        janus = load_janus(
            checkpoint,
            pad_token_id=encoder.pad_token_id,
            dtype=dtype,
            device=device,
            backend=backend,
        )
        return cls(janus, checkpoint, roles)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self.janus.language_model.embed_tokens.weight
        return weight

    def generate(
        self, prompts: str | Sequence[str], *, dola: bool = True, **settings: Any
    ) -> Generation:
        """Generate the images that ``main.py predict`` makes of the same prompts and settings.

        Args:
            prompts: One or more prompts.
            dola: Whether to use DoLa.
            settings: Any other setting of :class:`lit_dola.LitDoLa` by name: ``alpha``,
                ``cfg_weight``, ``parallel_size``, ``seed``, ...

        Raises:
            UserError: If a setting or prompt is invalid, or the model's logits are not finite.
        """
        fixed = {"model_path": self.checkpoint.name, "roles": self.roles}
        if wrong := {*fixed, "backend", "quantize", "inspect"} & settings.keys():
            raise UserError(
                f"{min(wrong)}: not a setting of generate; expected it in from_pretrained, or a run"
                " of predict"
            )
        model = LitDoLa.checked({**fixed, "dola": dola, **settings})
        model.janus = self.janus
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        data = _GivenPrompts(given, model, self.checkpoint)
        with quiet_lightning():
            predictions = self._trainer().predict(model, datamodule=data)
        return _in_order(cast(list[GeneratedImages], predictions))

    def decode(self, tokens: Tensor) -> list[Image.Image]:
        """Decode tokens ``(images, num_image_tokens)``, as a generation or a run has saved them."""
        with torch.inference_mode():
            pixels = decode_pixels(self.janus, tokens.to(self.device, torch.long))
            return [to_pillow(one[0]) for one in pixels]

    def _trainer(self) -> Trainer:
        on_cpu = self.device.type == "cpu"
        precision: Any = _PRECISIONS[self._weight.dtype]
        return Trainer(
            accelerator="cpu" if on_cpu else "gpu",
            devices=1 if on_cpu else [self.device.index or 0],
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[GenerationProgressBar()],
        )


class _GivenPrompts(PromptDataModule):
    """Prompts from a list in place of a file."""

    def __init__(self, prompts: list[str], model: LitDoLa, checkpoint: Checkpoint) -> None:
        super().__init__(
            "prompts", model.model_path, model.roles, model.parallel_size, model.images_per_batch
        )
        self.prompts = prompts
        self.checkpoint = checkpoint

    def read_prompts(self, skipped: list[Failure] | None) -> list[Prompt]:
        try:
            return check_prompts(self.prompts)
        except UserError as error:
            raise UserError(f"prompts: {error}") from error


def _in_order(predictions: list[GeneratedImages]) -> Generation:
    """Order images by prompt and index, whatever batches they were made in."""
    found = {}
    for part in predictions:
        if part.failures:
            raise UserError(part.failures[0].reason)
        for request, tokens, pixels in zip(part.requests, part.tokens, part.pixels):
            found[request.key] = tokens, to_pillow(pixels)
    images = [found[key] for key in sorted(found)]
    return Generation([image for _, image in images], torch.stack([drawn for drawn, _ in images]))
