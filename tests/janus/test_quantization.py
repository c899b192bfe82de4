"""Weights in fewer bits; most tests need torchao."""

from importlib.util import find_spec
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import nn

from lit_dola.data.requests import RequestKey
from lit_dola.errors import UserError
from lit_dola.janus.model import linear_layers
from lit_dola.janus.quantization import Quantization, _check_int4, quantize_weights
from tests.support.images import ImageGenerator

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
CPU = torch.device("cpu")
WORST = {"int8wo": 0.02, "float8wo": 0.05, "int4wo": 0.15}


def test_without_torchao_the_error_says_what_to_do(load, monkeypatch):
    monkeypatch.setattr("lit_dola.settings.checks.find_spec", lambda name: None)
    with pytest.raises(UserError, match="torchao is not installed; pip install"):
        quantize_weights(load(torch.float32), "int8wo", CPU)


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", get_args(Quantization))
def test_quantized_weights_are_near_the_weights_they_stand_for(how, dtype, load, encoder):
    plain, janus = load(dtype), load(dtype, quantize=how)
    for layer, ours in zip(linear_layers(plain), linear_layers(janus), strict=True):
        assert type(ours.weight) is not nn.Parameter  # a tensor type of torchao
        hidden_states = torch.randn(64, layer.in_features, dtype=dtype)
        expected = layer(hidden_states)
        error = (ours(hidden_states) - expected).float().norm() / expected.float().norm()
        assert 0 < error < WORST[how]
    generate = ImageGenerator(janus, layer=6)
    tokens = generate([encoder.encode("a red apple")], [RequestKey(0, 0)])
    assert tokens.shape == (1, 16)
    assert ((tokens >= 0) & (tokens < 1024)).all()


@needs_torchao
@pytest.mark.parametrize("how", get_args(Quantization))
def test_the_module_may_be_cast_to_the_dtype_that_it_has(how, load):
    """As Lightning does, and moved to the device where it is."""
    janus = load(torch.bfloat16, quantize=how)
    layer = janus.language_model.layers[0].mlp.up_proj
    hidden_states = torch.randn(4, layer.in_features, dtype=torch.bfloat16)
    before = layer(hidden_states)
    janus.to(torch.bfloat16).to(CPU)
    assert torch.equal(layer(hidden_states), before)


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["int8wo", "int4wo"])
def test_on_a_cpu_a_product_does_not_depend_on_the_other_rows(how, dtype, load):
    """The kernels take bfloat16; the result has the dtype of the inputs, and their shape."""
    janus = load(dtype, quantize=how)
    layer = janus.language_model.layers[0].mlp.down_proj
    inputs = torch.randn(5, 9, layer.in_features, dtype=dtype)
    together = layer(inputs)
    assert (together.dtype, together.shape) == (dtype, (5, 9, layer.out_features))
    for rows in (1, 2, 4, 17, 32, 45):
        parts = inputs.view(45, -1).split(rows)
        assert torch.equal(torch.cat([*map(layer, parts)]).view_as(together), together)


@needs_torchao
@pytest.mark.parametrize("how", ["int8wo", "int4wo"])
def test_on_a_cpu_a_bias_is_added(how):
    layer = nn.Linear(64, 32)
    module = SimpleNamespace(language_model=nn.Sequential(), head_module=nn.Sequential(layer))
    inputs = torch.randn(3, 64)
    expected = layer(inputs)
    quantize_weights(module, how, CPU)
    assert (layer(inputs) - expected).abs().max() < 0.3
    with torch.no_grad():
        layer.bias += 100
    assert (layer(inputs) - expected - 100).abs().max() < 0.3


@needs_torchao
def test_int4_leaves_layers_that_it_cannot_store_and_says_so(load, caplog):
    janus = load(torch.bfloat16)
    mlp = janus.language_model.layers[3].mlp
    wide = torch.nn.Linear(mlp.up_proj.in_features, 17, dtype=torch.bfloat16)
    mlp.up_proj = wide
    weight = wide.weight
    quantize_weights(janus, "int4wo", CPU)
    assert wide.weight is weight
    assert type(mlp.down_proj.weight) is not nn.Parameter
    (note,) = [record.getMessage() for record in caplog.records]
    assert note.startswith("model.quantize: int4wo leaves 1 of 58 layers as they are")


def test_what_int4_needs_of_a_gpu(monkeypatch):
    gpu = SimpleNamespace(type="cuda")
    capability = [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    _check_int4(torch.bfloat16, gpu)
    _check_int4(torch.float32, CPU)
    with pytest.raises(UserError, match=r"weights in torch\.float32; expected --trainer\.prec"):
        _check_int4(torch.float32, gpu)
    capability[0] = (7, 5)
    with pytest.raises(UserError, match=r"Tesla T4; expected a GPU of compute capability 8\.0"):
        _check_int4(torch.bfloat16, gpu)
