"""Janus with DoLa-static from Python: load once, then generate as often as you like."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from lit_dola.data import PromptDataModule
from lit_dola.errors import UserError
from lit_dola.janus import JanusBackbone, find_checkpoint, load_janus
from lit_dola.module import GeneratedImages, LitDoLa, decode_pixels, to_pillow
from lit_dola.progress import GenerationProgressBar
from lit_dola.prompt import PromptEncoder, Roles
from lit_dola.prompt_file import Failure, Prompt, check_prompts
from lit_dola.quiet import quiet_lightning

_PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-true", torch.float16: "16-true"}


class Generation(NamedTuple):
    """Images by prompt, then by number."""

    images: list[Image.Image]
    """RGB."""
    tokens: Tensor
    """Int32 ``(images, num_image_tokens)``, on the CPU."""


class JanusPipeline:
    """A loaded Janus that draws with DoLa-static, or without.

    Args:
        janus: The model, on its device.
        model_path: What it was loaded from.
        roles: Role names of the prompt's conversation.
    """

    def __init__(self, janus: JanusBackbone, model_path: str, roles: Roles = "auto") -> None:
        self.janus = janus
        self.model_path = model_path
        self.roles = roles

    @classmethod
    def from_pretrained(
        cls,
        model_path: str,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        roles: Roles = "auto",
        backend: Literal["transformers", "deepseek"] = "transformers",
    ) -> "JanusPipeline":
        """Load a checkpoint.

        Args:
            model_path: As the setting ``model.model_path``: a folder, a name on the hub, or one of
                Janus-1.3B, Janus-Pro-1B, Janus-Pro-7B.
            device: Where to; a GPU if there is one, else the CPU.
            dtype: Of the weights: float32, bfloat16 or float16; bfloat16 on a GPU, else float32.
            roles: As the setting ``model.roles``.
            backend: As the setting ``model.backend``.

        Raises:
            UserError: If the checkpoint cannot be had or is not whole.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        if dtype not in _PRECISIONS:
            raise UserError(f"dtype: {dtype}; expected one of {', '.join(map(str, _PRECISIONS))}")
        checkpoint = find_checkpoint(model_path)
        encoder = PromptEncoder(checkpoint, roles, name=model_path)
        janus = load_janus(
            checkpoint,
            pad_token_id=encoder.pad_token_id,
            dtype=dtype,
            device=device,
            backend=backend,
        )
        return cls(janus, model_path, roles)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        return self.janus.language_model.embed_tokens.weight

    def generate(
        self, prompts: str | Sequence[str], *, dola: bool = True, **settings: Any
    ) -> Generation:
        """Draw images: those that ``main.py predict`` draws from the same prompts and settings.

        Args:
            prompts: One or more.
            dola: Whether DoLa is on.
            settings: Any other setting of :class:`lit_dola.module.LitDoLa` by its name: ``alpha``,
                ``cfg_weight``, ``parallel_size``, ``seed``, ...

        Raises:
            UserError: If a setting or a prompt is not as it should be, or the model's logits are
                not finite.
        """
        fixed = {"model_path": self.model_path, "roles": self.roles}
        if wrong := {*fixed, "backend", "quantize", "inspect"} & settings.keys():
            raise UserError(f"{min(wrong)}: not a setting of generate")
        model = LitDoLa.checked({**fixed, "dola": dola, **settings})
        model.janus = self.janus
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        data = _GivenPrompts(given, model)
        with quiet_lightning():
            predictions = self._trainer().predict(model, datamodule=data)
        return _in_order(cast(list[GeneratedImages], predictions))

    def decode(self, tokens: Tensor) -> list[Image.Image]:
        """Images from tokens ``(images, num_image_tokens)``, as a generation or a run has saved."""
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

    def __init__(self, prompts: list[str], model: LitDoLa) -> None:
        super().__init__(
            "prompts",
            model.model_path,
            model.roles,
            model.hparams["parallel_size"],
            model.hparams["images_per_batch"],
        )
        self.prompts = prompts

    def read_prompts(self, skipped: list[Failure] | None) -> list[Prompt]:
        try:
            return check_prompts(self.prompts)
        except UserError as error:
            raise UserError(f"prompts: {error}") from error


def _in_order(predictions: list[GeneratedImages]) -> Generation:
    """Images by prompt and number, whatever batches they were made in."""
    found = {}
    for part in predictions:
        if part.failures:
            raise UserError(part.failures[0].reason)
        for request, tokens, pixels in zip(part.requests, part.tokens, part.pixels):
            found[request.key] = tokens, to_pillow(pixels)
    images = [found[key] for key in sorted(found)]
    return Generation([image for _, image in images], torch.stack([drawn for drawn, _ in images]))
