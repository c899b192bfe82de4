"""A rehearsal for a GPU, without one: the loops and ``verify`` on fake ``cuda`` tensors.

Fake tensors have a device, a dtype and a shape but no numbers. An operation on tensors of different
devices fails, and so does every read of a number, which would make the host wait for a GPU. They
need a CUDA build of torch: ``make rehearse-gpu`` installs one.
"""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
)

from lit_dola.data.requests import RequestKey
from lit_dola.decoding.guidance import ApcPolicy
from lit_dola.decoding.inspection import inspect_tokens
from lit_dola.decoding.loop import TokenGenerator, cfg_pair
from lit_dola.decoding.pool import PooledGenerator
from lit_dola.decoding.sampling import EntropyTemperature
from lit_dola.janus import weights
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.model import TransformersJanus
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.janus.vq import to_uint8
from lit_dola.verification import promises, subject
from lit_dola.verification.promises import (
    check_checkpoint,
    check_dola,
    check_logits,
    check_pixels,
    check_same_image,
    check_speculative,
)
from lit_dola.verification.speed import (
    Device,
    check_quantized,
    measure_dola,
    measure_fitting,
    measure_loops,
)
from lit_dola.verification.subject import Subject
from tests.support.commands import ROOT
from tests.support.scoring import make_scoring

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")

GPU = torch.device("cuda", 0)
PROMPTS = [[0, 5, 6, 7, 4], [0, 5, 6, 4], [0, *[7] * 40, 4]]
KEYS = [RequestKey(0, 0), RequestKey(1, 0), RequestKey(1, 1)]
SCORINGS = {
    "baseline": make_scoring().baseline,
    "strength": make_scoring(strength=0.2, mid_norm=True, alpha=0.005),
    "head set alone": make_scoring(strength=0.0),
    "greedy": make_scoring(temperature=0.0),
    "top-k and top-p": make_scoring(top_k=5, top_p=0.9),
    "min-p": make_scoring(min_p=0.1),
    "entropy": make_scoring(entropy_temperature=EntropyTemperature(2.5, 3.0, 0.6)),
    **{apc: make_scoring(apc=apc) for apc in get_args(ApcPolicy)},
}


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.fixture
def janus(fake):
    """The small Janus in bfloat16, with fake weights and buffers."""
    config = Checkpoint.open(str(ROOT / "checkpoints/shapes-janus")).config
    janus = TransformersJanus(config, pad_token_id=2)
    for module in janus.modules():
        for name, weight in module.named_parameters(recurse=False):
            made = torch.empty(weight.shape, dtype=torch.bfloat16, device=GPU)
            setattr(module, name, nn.Parameter(made, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device=GPU))
    return janus


@pytest.fixture(autouse=True)
def no_last_look(monkeypatch):
    """Leave out the one read of the device after the loop: were all logits finite?"""
    monkeypatch.setattr(TokenGenerator, "_check_finite", lambda *_: None)


def draw(make, janus, scoring, guided=True, **settings):
    generate = make(
        janus, janus.image_head, scoring, layer=8, max_new_tokens=20,
        max_prompt_length=50, fill_to=4, **settings,
    )  # fmt: skip
    prompts = [cfg_pair(PROMPTS[key.entry_index], janus.pad_token_id) for key in KEYS]
    if not guided:
        prompts = [branches[:1] for branches in prompts]
        generate.decoder = replace(generate.decoder, contrast=replace(scoring, cfg_weight=1.0))
    return generate(prompts, KEYS)


@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
def test_the_token_loop_never_waits(scoring, janus):
    tokens = draw(TokenGenerator, janus, scoring)
    assert (tokens.shape, tokens.device, tokens.dtype) == ((3, 20), GPU, torch.int64)


@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
def test_the_speculative_loop_waits_once_per_pass(scoring, janus, monkeypatch):
    """For one number, of the pass before."""
    reads = []

    def read(generate, known):
        assert known.shape == ()
        reads.append(known)
        return 20 * 4 if len(reads) == 3 else 0

    monkeypatch.setattr(PooledGenerator, "_read", read)
    tokens = draw(PooledGenerator, janus, scoring, window=6)
    assert (tokens.shape, tokens.device, tokens.dtype) == ((3, 20), GPU, torch.int64)
    assert len(reads) == 3


def test_without_guidance(janus):
    assert draw(TokenGenerator, janus, make_scoring(), guided=False).device == GPU


def test_it_notices_a_wait_and_another_device(janus):
    with pytest.raises(DataDependentOutputException):
        draw(PooledGenerator, janus, make_scoring(), window=6)
    with pytest.raises(RuntimeError, match="device"):
        janus.image_head.linear(torch.empty(2, 160, dtype=torch.bfloat16))


def test_inspection_brings_its_figures_to_the_host(janus):
    tokens = torch.zeros(janus.num_image_tokens, dtype=torch.long)
    branches = cfg_pair(PROMPTS[0], janus.pad_token_id)
    found = inspect_tokens(janus, make_scoring(), 8, branches, tokens, KEYS[0])
    assert {part.device.type for part in found} == {"cpu"}
    assert {part.shape for part in found} == {(janus.num_image_tokens,)}


def test_pixels(janus):
    tokens = torch.zeros(1, janus.num_image_tokens, dtype=torch.long, device=GPU)
    pixels = to_uint8(janus.decode_image_tokens(tokens))
    assert (pixels.shape, pixels.dtype, pixels.device) == ((1, 3, 48, 48), torch.uint8, GPU)


@pytest.fixture
def readable(monkeypatch):
    """Let the host read the device, where every number is 0, and there is no driver."""
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: True)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: 0.0)
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: 0)
    monkeypatch.setattr(FakeTensor, "tolist", lambda it: np.zeros(tuple(it.shape)).tolist())
    monkeypatch.setattr(PooledGenerator, "_read", lambda generate, known: 10**6)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 2**30)
    monkeypatch.setattr(promises, "to_pillow", lambda pixels: Image.new("RGB", (48, 48)))


def test_every_row_of_a_verification(janus, readable, monkeypatch):
    on_disk = [
        (name, torch.empty(it.shape, dtype=it.dtype)) for name, it in janus.model.named_parameters()
    ]
    monkeypatch.setattr(weights, "_read_file", lambda *_: on_disk)
    for limit in ("_TURN", "_LONG"):
        monkeypatch.setattr(subject, limit, 0.0)
    checkpoint = Checkpoint.open(str(ROOT / "checkpoints/shapes-janus"))
    prompts = [cfg_pair(ids, janus.pad_token_id) for ids in PROMPTS]
    model = Subject(janus, make_scoring(), 8, prompts, exact=False, fitting=4, short=6, window=4)
    device = Device(model)
    rows = [
        row
        for found in (
            check_checkpoint(model, checkpoint, PromptEncoder(checkpoint.folder)),
            check_logits(model),
            check_dola(model),
            check_pixels(model),
            check_same_image(model, model.loop(20, images=4)),
            measure_fitting(model, device, model.loop(20, images=4)),
            check_speculative(model),
            measure_loops(model, device),
            measure_dola(model),
            check_quantized(model, lambda how: janus),
        )
        for row in found
    ]
    names = {row.name.partition(":")[0] for row in rows}
    assert names == {"checkpoint", "logits", "dola", "pixels", "same image", "speed",
                     "speculative", "fastest", "quantized"}  # fmt: skip
    assert len(rows) > 25
