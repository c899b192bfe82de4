"""Lenses: affine readouts that were trained for the layers they read.

A middle layer is usually read through a head that was made for the final one, which misreads it. A
lens is one affine map per layer, ``h' = h + A h + b``, in front of the final norm and the head,
trained to minimise the divergence of what is read there from the final distribution, with
everything else frozen. It is a small file beside the checkpoint.

Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (arXiv
2303.08112, 2023), section 3.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.files import refuse_pointer

LensHead = Literal["image", "text"]
"""The head that a lens was trained for."""
_KEY = "lit_dola_lens"
"""Key of the metadata of a lens."""
_EXPECTED = "a file that main.py lens has written"


@dataclass(frozen=True)
class LensFile:
    """The header of a lens.

    Example:
        >>> lens = LensFile.open(Path("checkpoints/shapes-janus/lens.safetensors"))
        >>> lens.layers
        (1, 2, 3, 4, 5, 6, 7, 8)
    """

    path: Path
    head: LensHead
    hidden_size: int
    layers: tuple[int, ...]
    """Indices in ``hidden_states`` of the layers that it reads."""
    weights: str
    """As :attr:`Checkpoint.weights_digest` of the checkpoint that it was trained for."""
    training: Mapping[str, Any]
    """Settings and losses of its training."""

    @classmethod
    def open(cls, path: Path) -> "LensFile":
        """Read the header of a lens.

        Raises:
            UserError: If it cannot be read, or is another file.
        """
        if not path.is_file():
            raise UserError(f"{path}: not found", _EXPECTED)
        refuse_pointer(path)
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_KEY])
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
            layers, size = tuple(map(int, about["layers"])), int(about["hidden_size"])
            head: LensHead = about["head"]
            sound = head in get_args(LensHead) and shapes == _shapes(layers, size)
            found = cls(path, head, size, layers, str(about["weights"]), dict(about["training"]))
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: not a lens", _EXPECTED) from error
        if not sound:
            raise UserError(f"{path}: not a lens", _EXPECTED)
        return found

    def check(self, checkpoint: Checkpoint, head: LensHead, layer: int) -> None:
        """Check that it reads a layer of a checkpoint.

        Raises:
            UserError: If it was trained for another one, or for other layers.
        """
        if self.head != head:
            raise UserError(
                f"{self.path}: a lens of the {self.head} head", f"one of the {head} head"
            )
        size = int(checkpoint.config.text_config.hidden_size)
        if self.hidden_size != size:
            raise UserError(f"{self.path}: hidden size {self.hidden_size}", f"{size}")
        if self.weights != checkpoint.weights_digest:
            raise UserError(
                f"{self.path}: trained for a checkpoint with other weights",
                f"a lens of {checkpoint.name}",
            )
        if layer not in self.layers:
            raise UserError(
                f"{self.path}: no lens of layer {layer}",
                f"model.layer to be one of {', '.join(map(str, self.layers))}",
                mentions=("model.layer",),
            )

    @cached_property
    def digest(self) -> str:
        """Identifies the content."""
        with self.path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"

    def readout(self, layer: int, dtype: torch.dtype, device: torch.device) -> nn.Linear:
        """Return the lens of a layer, ``A`` and ``b``, frozen."""
        return _read(self.path, self.digest, layer, dtype, device)


@lru_cache(maxsize=4)
def _read(
    path: Path, _digest: str, layer: int, dtype: torch.dtype, device: torch.device
) -> nn.Linear:
    with safe_open(path, framework="pt", device=str(device)) as file:
        weight, bias = (file.get_tensor(name).to(dtype) for name in _shapes((layer,), 1))
    lens = nn.Linear(len(bias), len(bias), device="meta")
    lens.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    return lens.requires_grad_(False)


def _shapes(layers: tuple[int, ...], size: int) -> dict[str, list[int]]:
    """Return the shapes of a lens's tensors, by name."""
    found: dict[str, list[int]] = {}
    for layer in layers:
        found[f"layers.{layer}.weight"] = [size, size]
        found[f"layers.{layer}.bias"] = [size]
    return found


def lens_content(
    readouts: Mapping[int, nn.Linear],
    checkpoint: Checkpoint,
    head: LensHead,
    training: Mapping[str, Any],
) -> bytes:
    """Return the content of a lens's file.

    Args:
        readouts: ``A`` and ``b`` by layer.
        checkpoint: The checkpoint that it was trained for.
        head: The head that it was trained for.
        training: How it was trained, and how well it reads.
    """
    layers = sorted(readouts)
    about = {
        "head": head,
        "hidden_size": readouts[layers[0]].in_features,
        "layers": layers,
        "checkpoint": checkpoint.fingerprint,
        "weights": checkpoint.weights_digest,
        "training": dict(training),
    }
    tensors = {
        f"layers.{layer}.{name}": weight.detach().float().cpu().contiguous()
        for layer in layers
        for name, weight in readouts[layer].named_parameters()
    }
    return save(tensors, {_KEY: json.dumps(about)})
