"""Int8 weights; the second test needs torchao."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from lit_dola.data.requests import ImageKey
from lit_dola.errors import UserError
from lit_dola.janus.loading import quantize_int8
from tests.support.images import ImageGenerator


def test_without_torchao_the_error_says_what_to_do(load, monkeypatch):
    monkeypatch.setattr("lit_dola.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match="torchao is not installed; pip install"):
        quantize_int8(load(torch.float32))


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_weights_are_near_the_weights_they_stand_for(dtype, load, encoder):
    plain, janus = load(dtype), load(dtype)
    quantize_int8(janus)
    layer = janus.language_model.layers[0].mlp.up_proj
    hidden_states = torch.randn(64, layer.in_features, dtype=dtype)
    expected = plain.language_model.layers[0].mlp.up_proj(hidden_states)
    error = (layer(hidden_states) - expected).float().norm() / expected.float().norm()
    assert 0 < error < 0.02
    assert type(layer.weight) is not nn.Parameter  # a tensor type of torchao
    generate = ImageGenerator(janus, layer=6)
    tokens = generate([encoder.encode("a red apple")], [ImageKey(0, 0)])
    assert tokens.shape == (1, 16)
    assert ((tokens >= 0) & (tokens < 1024)).all()
