"""SigLIP beside Janus: similarity of a picture and texts, from any layer of the vision tower."""

from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoProcessor

from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import ModelFolder, find_checkpoint
from lit_dola.janus.files import read_json
from lit_dola.messages import first_line

_log = getLogger(__name__)
_TYPES = ("siglip", "siglip2")


@dataclass(frozen=True)
class SiglipCheckpoint(ModelFolder):
    """A folder with a SigLIP or SigLIP 2 in transformers' layout, and its config."""

    config: Any

    @classmethod
    def open(cls, model_path: str) -> "SiglipCheckpoint":
        """Find a checkpoint, fetching it from the hub if needed, and read its config.

        Raises:
            UserError: If it cannot be found or fetched, or is not a SigLIP.
        """
        folder = find_checkpoint(model_path)
        path = folder / "config.json"
        model_type = read_json(path).get("model_type")
        if model_type not in _TYPES:
            raise UserError(
                f"model_type is {model_type!r}",
                f"{' or '.join(map(repr, _TYPES))} for model.scorer siglip",
                at=path,
            )
        try:
            config = AutoConfig.from_pretrained(folder)
        except Exception as error:  # transformers raises any exception for an unexpected value
            raise UserError(
                f"not readable as a SigLIP config: {first_line(error)}", at=path
            ) from error
        return cls(model_path, folder, config)

    @property
    def num_layers(self) -> int:
        """Transformer layers of the vision tower; ``hidden_states`` has one entry more."""
        return int(self.config.vision_config.num_hidden_layers)


class Siglip(nn.Module):
    """transformers' SigLIP, whose vision tower is also read at a middle layer.

    Args:
        checkpoint: The checkpoint.
        dtype: Floating dtype of the weights.
        device: Device of the weights.

    Raises:
        UserError: If it cannot be loaded.
    """

    def __init__(
        self, checkpoint: SiglipCheckpoint, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        folder = checkpoint.folder
        try:
            model, found = AutoModel.from_pretrained(folder, dtype=dtype, output_loading_info=True)
            self.model = model.to(device)
            self.processor = AutoProcessor.from_pretrained(folder)
        except Exception as error:  # a broken file may raise any exception
            raise UserError(f"no SigLIP can be loaded: {first_line(error)}", at=folder) from error
        if getattr(self.model.vision_model, "head", None) is None:
            raise UserError("its vision tower has no pooling head", "one", at=folder)
        _check_all_loaded(found, folder)
        self.text_length = int(checkpoint.config.text_config.max_position_embeddings)
        self._has_cut = False
        self.eval().requires_grad_(False)
        try:
            with torch.inference_mode():
                scores = self.logits(
                    self.embed_picture(Image.new("RGB", (20, 10)), layer=None),
                    self.embed_text("a")[None],
                )
        except Exception as error:  # transformers checks few of the values in its files
            raise UserError(
                f"no picture can be compared with a text: {first_line(error)}", at=folder
            ) from error
        if not scores.isfinite().all():
            raise UserError("a black picture has scores that are not finite", "numbers", at=folder)

    def embed_text(self, text: str) -> Tensor:
        """Return the normalized embedding of a text, ``(hidden,)``.

        It is in lower case and padded to the length of the text tower, as SigLIP was trained; and
        by itself: in a batch, the last bits would depend on the others. A longer one is cut, and
        the first such text logged.
        """
        if not self._has_cut:
            self._has_cut = note_if_cut(self.processor.tokenizer, text.lower(), self.text_length)
        inputs = self.processor.tokenizer(
            [text.lower()],
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_tensors="pt",
        )
        output = self.model.text_model(inputs["input_ids"].to(self.model.logit_scale.device))
        return _normalized(output.pooler_output)[0]

    def embed_picture(self, picture: Image.Image, layer: int | None) -> Tensor:
        """Return the normalized embeddings of a picture from one or two layers.

        A middle layer's hidden states go through the tower's own post-layernorm and pooling head.

        Args:
            picture: An RGB image.
            layer: Index of the middle layer in ``hidden_states``; None: the final layer alone.

        Returns:
            ``(1, hidden)``: the final layer; ``(2, hidden)``: then the middle one.
        """
        tower = self.model.vision_model
        inputs = self.processor.image_processor(picture, return_tensors="pt")
        weight = self.model.logit_scale
        inputs = {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        seen: dict[str, Any] = {}

        def note_middle(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            seen["middle"] = output[0] if isinstance(output, tuple) else output

        def note_head(_head: nn.Module, inputs: Any, output: Tensor) -> None:
            seen["others"], seen["final"] = inputs[1:], output

        hooks = [tower.head.register_forward_hook(note_head)]
        if layer is not None:
            hooks.append(tower.encoder.layers[layer - 1].register_forward_hook(note_middle))
        try:
            self.model.get_image_features(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        pooled = [seen["final"]]
        if layer is not None:
            pooled.append(tower.head(tower.post_layernorm(seen["middle"]), *seen["others"]))
        return _normalized(torch.cat(pooled))

    def logits(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Return ``logits_per_image``, ``(..., texts)``, of normalized embeddings.

        Args:
            pictures: ``(..., hidden)``.
            texts: ``(texts, hidden)``.
        """
        scale, bias = self.model.logit_scale.exp(), self.model.logit_bias
        logits: Tensor = (pictures @ texts.T) * scale + bias
        return logits


def _check_all_loaded(found: dict[str, Any], folder: Path) -> None:
    """Check that a model has all its weights, and a place for each, as :class:`Siglip` needs."""
    for kind, problem in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "left over"),
        ("mismatched_keys", "wrongly shaped"),
    ):
        names = sorted(str(name) for name in found[kind] if "position_ids" not in str(name))
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise UserError(
                f"weights do not fit its config.json; {problem}: {names[0]}{more}", at=folder
            )


def note_if_cut(tokenizer: Any, text: str, length: int) -> bool:
    """Return whether a text has more tokens than a text tower reads, and log it if so."""
    count = len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
    if count > length:
        _log.warning(
            "%s has %s tokens; the text tower reads %s, and what differs after them has no effect,"
            " neither here nor in other texts",
            f"{text[:60]!r}",
            count,
            length,
        )
    return count > length


def _normalized(embeddings: Tensor) -> Tensor:
    normalized: Tensor = embeddings / embeddings.norm(dim=-1, keepdim=True)
    return normalized
