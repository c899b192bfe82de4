"""The benchmark: every method draws all images, in turns, from one model."""

import json

import pytest
import torch

from benchmarks import decode
from benchmarks.methods import make_methods
from benchmarks.models import BOI, BOS, SIZES, random_janus, random_prompts
from tests.support import original


@pytest.fixture(scope="module")
def janus():
    return random_janus("tiny", 3, torch.float32, torch.device("cpu"))


def test_every_method_draws_every_image(janus):
    for name, run in make_methods(janus, random_prompts(2), 2, compile=False).items():
        tokens = run(3)
        assert tokens.shape == (4, 3), name
        assert ((tokens >= 0) & (tokens < 16384)).all()


def test_prompts_are_of_one_length_so_that_transformers_can_batch_them():
    prompts = random_prompts(5)
    assert {len(ids) for ids in prompts} == {24}
    assert all(ids[0] == BOS and ids[-1] == BOI for ids in prompts)


@pytest.mark.slow
def test_presets_have_the_sizes_that_they_are_called_by():
    assert SIZES["7b"] == original.LLAMA["Janus-Pro-7B"]
    assert SIZES["1b"] == original.LLAMA["Janus-Pro-1B"]
    small = random_janus("small", 3, torch.float32, torch.device("cpu"))
    assert 90e6 < decode._decoded_weights(small).numel < 110e6


@pytest.mark.slow
def test_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decode, "_peak_memory_ratio", lambda *_: 1.0)  # it takes two processes
    monkeypatch.setattr(decode, "_COPIED_NUMBERS", 2**16)
    decode.main("tiny", prompts=2, images=1, tokens=3, repeats=2, output=tmp_path)
    result = json.loads((tmp_path / "decode.json").read_text())
    assert set(result["methods"]) == {"a", "a_batch", "b", "c", "d", "e", "f"}
    assert set(result["ratios"]) == {"d/c", "e/c", "f/c", "b/d", "a/c", "a_batch/c"}
    for ratio in result["ratios"].values():
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    printed = capsys.readouterr().out
    assert "| (b) plain loop with DoLa, a prompt at a time |" in printed
    assert "| d/c |" in printed
