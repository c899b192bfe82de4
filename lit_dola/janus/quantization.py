"""Weights in fewer bits, with torchao: fewer bytes to store, and to read at every step."""

from logging import getLogger
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_dola.errors import UserError
from lit_dola.janus.model import Backbone, linear_layers
from lit_dola.janus.opaque import OpaqueWeight
from lit_dola.settings.checks import require

_log = getLogger(__name__)

Quantization = Literal["int8wo", "int4wo", "float8wo"]
INT4_GROUP = 32
"""Weights that share a scale and a zero point in int4; torchao has no smaller groups."""


def quantize_weights(janus: Backbone, how: Quantization, device: torch.device) -> None:
    """Quantize the linear layers that a decoding step reads, in place; needs torchao.

    On a GPU, and in float8wo, matrix products run in the model's dtype. On a CPU those of int8wo
    and int4wo round their inputs to bfloat16, for which torch has kernels that read the quantized
    weights as they are; a row's product does not depend on the other rows. The layers are moved to
    the device one at a time, so that it never holds all of them unquantized.

    Args:
        janus: The model. Embeddings, norms and the VQ decoder stay as they are, where they are.
        how: int8wo and float8wo: 8 bits, with one scale per output channel; int4wo: 4 bits, with a
            scale and a zero point per 32 weights, which makes 5 bits per weight in bfloat16.
        device: Where the quantized layers are to be.
    """
    require("torchao", "model.quantize", extra="quantize")
    layers = linear_layers(janus)
    fitting = layers
    if how == "int4wo":
        _check_int4(layers[0].weight.dtype, device)
        fitting = [layer for layer in layers if _fits_int4(layer, device)]
        if len(fitting) < len(layers):
            _log.warning(
                "model.quantize: int4wo leaves %d of %d layers as they are: it needs a multiple of"
                " %d inputs, and of 16 outputs on a CPU",
                len(layers) - len(fitting),
                len(layers),
                INT4_GROUP,
            )
    from torchao.quantization import quantize_

    config = _config(how, device)
    for layer in fitting:
        if device.type != "cpu" or how == "float8wo":
            quantize_(layer, config, device=device)
            continue
        plain = layer.weight
        layer.weight = nn.Parameter(plain.detach().bfloat16(), requires_grad=False)
        quantize_(layer, config, device=device)
        kind = LowBitWeight if how == "int4wo" else ByteWeight
        layer.weight = nn.Parameter(kind(plain, layer.weight), requires_grad=False)


class LowBitWeight(OpaqueWeight):
    """A weight of torchao on a CPU that multiplies inputs in bfloat16, whatever their dtype.

    Args:
        weight: The weight that it stands for, ``(outputs, inputs)``.
        quantized: Its quantized form.
    """

    name = "a quantized weight"
    quantized: Any

    @staticmethod
    def __new__(cls, weight: Tensor, quantized: Any) -> "LowBitWeight":
        """Take the shape and dtype of a weight."""
        self = OpaqueWeight.__new__(cls, weight)
        self.quantized = quantized
        return self

    def product(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``inputs @ self.T + bias``."""
        flat = inputs.reshape(-1, inputs.shape[-1]).bfloat16()
        product = self._product(flat).to(inputs.dtype).view(*inputs.shape[:-1], self.shape[0])
        return product if bias is None else product + bias

    def _product(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.quantized)


class ByteWeight(LowBitWeight):
    """The same in int8, by torch's own kernel: torchao would make floats of all of it each time."""

    scale: Tensor
    ones: Tensor

    @staticmethod
    def __new__(cls, weight: Tensor, quantized: Any) -> "ByteWeight":
        """Take the shape and dtype of a weight, and what every product needs."""
        self = LowBitWeight.__new__(cls, weight, quantized)
        assert isinstance(self, ByteWeight)
        self.scale = quantized.scale.flatten()
        self.ones = torch.ones_like(self.scale, dtype=torch.bfloat16)
        return self

    def _product(self, inputs: Tensor) -> Tensor:
        # The kernel would round the scale to bfloat16, too.
        unscaled: Tensor = torch._weight_int8pack_mm(inputs, self.quantized.qdata, self.ones)
        return unscaled * self.scale


def _config(how: Quantization, device: torch.device) -> Any:
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int4WeightOnlyConfig,
        Int8WeightOnlyConfig,
    )

    if how == "int8wo":
        return Int8WeightOnlyConfig()
    if how == "float8wo":
        return Float8WeightOnlyConfig()
    if device.type == "cuda":  # in the layout of torch's own kernel
        return Int4WeightOnlyConfig(group_size=INT4_GROUP, int4_packing_format="tile_packed_to_4d")
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=INT4_GROUP)


def _fits_int4(layer: nn.Linear, device: torch.device) -> bool:
    outputs = 16 if device.type == "cpu" else 1
    return layer.in_features % INT4_GROUP == 0 and layer.out_features % outputs == 0


def _check_int4(dtype: torch.dtype, device: torch.device) -> None:
    """Check what torch's own kernel for int4 needs on a GPU."""
    if device.type != "cuda":
        return
    if dtype != torch.bfloat16:
        raise UserError(
            f"int4wo on a GPU, with weights in {dtype}",
            "--trainer.precision bf16-true",
            setting="model.quantize",
        )
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(
            f"int4wo on {torch.cuda.get_device_name(device)}",
            "a GPU of compute capability 8.0 or more (Ampere), int8wo or float8wo",
            setting="model.quantize",
        )
