"""Weights in the layout of oneDNN's kernels, which on many CPUs multiply several times faster.

torch multiplies float32 matrices with MKL, which does not use the widest instructions of every
processor, and lets oneDNN arrange bfloat16 weights anew in every call. Here they are arranged once.
No layer and no number of the model changes, only how a weight lies in memory.
"""

from logging import getLogger

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_dola.janus.model import Backbone, linear_layers
from lit_dola.janus.opaque import OpaqueWeight
from lit_dola.messages import first_line

_log = getLogger(__name__)
_ROUNDING = 0.02
"""Difference of two products that rounding in bfloat16 explains, per sum of their terms' sizes."""
SMALLEST = 2**18
"""Numbers in a weight from which on it pays, even for a single image."""


class PackedWeight(OpaqueWeight):
    """The weight of a linear layer, arranged for oneDNN.

    Args:
        weight: ``(outputs, inputs)``, on a CPU.
    """

    name = "a packed weight; unpack_weights brings it back"
    packed: Tensor

    @staticmethod
    def __new__(cls, weight: Tensor) -> "PackedWeight":
        """Arrange a weight."""
        self = OpaqueWeight.__new__(cls, weight)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        return self

    def product(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``inputs @ self.T + bias``."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.packed, bias, "none", [], ""
        )
        return product


def pack_weights(janus: Backbone) -> None:
    """Pack the large linear layers that a decoding step reads, in place, if it is on a CPU.

    Layers of other types (float64, quantized, sharded) stay as they are, and so do all if the first
    one does not multiply as before.
    """
    tried = False
    with torch.inference_mode(False):
        for layer in linear_layers(janus):
            weight = layer.weight
            if type(weight) is nn.Parameter and weight.numel() >= SMALLEST and _can_pack(weight):
                if not tried and (fault := _fault_of_packing(weight)):
                    _log.warning("weights in oneDNN's layout: %s; continuing without", fault)
                    return
                tried = True
                layer.weight = nn.Parameter(PackedWeight(weight), requires_grad=False)


def _fault_of_packing(weight: Tensor) -> str | None:
    """Return the reason why a weight cannot be packed on this machine; None if it can."""
    inputs = torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).to(weight.dtype)
    plain = F.linear(inputs, weight).float()
    try:
        packed = F.linear(inputs, PackedWeight(weight)).float()
    except RuntimeError as error:
        return first_line(error)
    size = F.linear(inputs.abs(), weight.abs()).float()
    return None if ((packed - plain).abs() <= _ROUNDING * size).all() else "wrong products"


def unpack_weights(janus: Backbone) -> None:
    """Bring back what :func:`pack_weights` has packed, to the bit."""
    with torch.inference_mode(False):
        for layer in linear_layers(janus):
            if isinstance(layer.weight, PackedWeight):
                plain = layer.weight.packed.to_dense()
                layer.weight = nn.Parameter(plain, requires_grad=False)


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if weight.dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return weight.dtype == torch.float32
