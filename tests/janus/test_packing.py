"""Weights packed for oneDNN: the same numbers in another order."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_dola.data.requests import RequestKey
from lit_dola.janus import packing
from lit_dola.janus.model import linear_layers
from lit_dola.janus.packing import PackedWeight, pack_weights, unpack_weights
from tests.support.images import BATCH, PROMPTS, ImageGenerator, expected, slow

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


@pytest.fixture(autouse=True)
def pack_all(monkeypatch):
    """Pack the small layers of the tests, too."""
    monkeypatch.setattr(packing, "SMALLEST", 0)


PACKED = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            reason="this CPU has no bfloat16 instructions, so that nothing is packed in it",
        ),
    ),
]


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("shape", [(2, 1), (7, 5), (64, 1)])
def test_products_are_those_of_the_weights(shape, dtype, load):
    plain, janus = load(dtype), load(dtype)
    pack_weights(janus)
    for layer, packed in zip(linear_layers(plain), linear_layers(janus), strict=True):
        assert isinstance(packed.weight, PackedWeight)
        assert isinstance(packed.weight, nn.Parameter)
        assert (packed.weight.shape, packed.weight.dtype) == (layer.weight.shape, dtype)
        states = torch.randn(*shape, layer.in_features, dtype=dtype)
        exact = F.linear(
            states.double(),
            layer.weight.double(),
            layer.bias.double() if layer.bias is not None else None,
        )
        error = (packed(states) - exact).norm() / exact.norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_to_the_bit(dtype, load):
    plain, janus = load(dtype), load(dtype)
    for _ in "12":
        pack_weights(janus)
    for _ in "12":
        unpack_weights(janus)
    for layer, back in zip(linear_layers(plain), linear_layers(janus), strict=True):
        assert type(back.weight) is nn.Parameter
        assert torch.equal(back.weight, layer.weight)


@pytest.mark.parametrize("dtype", PACKED)
def test_lightning_may_cast_and_move_the_module_to_what_it_is(dtype, load):
    janus = load(dtype)
    pack_weights(janus)
    janus.to(dtype).to("cpu")
    assert all(isinstance(layer.weight, PackedWeight) for layer in linear_layers(janus))
    with pytest.raises(NotImplementedError, match="unpack_weights brings it back"):
        janus.to(torch.float64)


def test_what_is_not_packed(load, monkeypatch):
    janus = load(torch.float64)
    pack_weights(janus)
    assert not any(isinstance(layer.weight, PackedWeight) for layer in linear_layers(janus))
    janus = load(torch.float32)
    head = janus.image_head.linear.weight
    monkeypatch.setattr(packing, "SMALLEST", head.numel())
    pack_weights(janus)
    packed = [isinstance(layer.weight, PackedWeight) for layer in linear_layers(janus)]
    assert (sum(packed), packed[-1]) == (1, True)


@pytest.mark.parametrize(
    "settings", [*slow([{"layer": None}]), {"layer": 6, "strength": 0.2}], ids=str
)
def test_same_tokens_as_the_reference_in_float64(settings, load, reference_model, encoder):
    janus = load(torch.float32)
    pack_weights(janus)
    tokens = ImageGenerator(janus, **settings)(
        [encoder.encode(PROMPTS[prompt]) for prompt, _ in BATCH],
        [RequestKey(*key) for key in BATCH],
    )
    found = tokens.tolist()
    assert found == expected(reference_model, encoder, guesses=found, **settings)
