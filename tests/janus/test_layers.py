"""Decoder layers of other releases of transformers, whose arguments have other names."""

from types import SimpleNamespace

import pytest
import torch

from lit_dola.decoding.cache import KVCache, PrefillView, StepView
from lit_dola.errors import UserError
from lit_dola.janus.layers import LayerAdapter


def before(hidden_states, attention_mask, position_ids, past_key_values, position_embeddings):
    return past_key_values.update(hidden_states, hidden_states, 0, {"sin": 1})


def bare(hidden_states, attention_mask, position_ids, past_key_values=None, **kwargs):
    return past_key_values.update(hidden_states, hidden_states, 0)


def now(hidden_states, attention_mask, position_ids, cache=None, **kwargs):
    return cache.update(hidden_states, hidden_states, 0, kwargs=kwargs)


def unknown(hidden_states, attention_mask, memory, **kwargs):
    raise AssertionError


def adapt(forward):
    layer = SimpleNamespace(forward=forward)
    return LayerAdapter.of(SimpleNamespace(layers=[layer]))


@pytest.fixture
def cache():
    config = SimpleNamespace(
        num_key_value_heads=1, head_dim=2, hidden_size=2, num_attention_heads=1, num_hidden_layers=1
    )
    return KVCache(config, rows=1, slots=4, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("forward", [before, bare, now])
def test_the_cache_arrives_under_the_name_that_the_layer_knows(forward, cache):
    states = torch.arange(4.0).view(1, 1, 2, 2)
    run = adapt(forward)
    same = {"attention_mask": None, "position_ids": None, "position_embeddings": None}
    views = [PrefillView(cache, torch.tensor([[0]]), 2), StepView(cache, torch.tensor([[2]]), 3)]
    for view, count in zip(views, (2, 1)):
        keys, values = run(forward, states[:, :, :count], view, **same)
        assert keys.shape == values.shape
    assert cache.keys[0][0, 0].tolist() == [[0, 1], [2, 3], [0, 1], [0, 0]]


def test_a_layer_that_takes_its_cache_otherwise_is_an_error_that_names_the_version():
    with pytest.raises(UserError, match=r"transformers \d+\.\d+.*; expected a version that pyproj"):
        adapt(unknown)
