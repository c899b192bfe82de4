"""Why the loop is fast, without a clock: shapes, calls, compilations, waits for the device."""

import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_dola.data.requests import RequestKey
from lit_dola.decoding.cache import KVCache, images_that_fit
from lit_dola.decoding.loop import cfg_pair
from lit_dola.decoding.pool import PooledGenerator
from tests.support.images import BATCH, PROMPTS, ImageGenerator
from tests.support.scoring import make_scoring


@pytest.fixture
def janus(load):
    return load(torch.float32)


@pytest.fixture
def generate(encoder):
    def run(generator, batch=BATCH, prompts=PROMPTS):
        input_ids = [encoder.encode(prompts[prompt]) for prompt, _ in batch]
        return generator(input_ids, [RequestKey(*key) for key in batch]).tolist()

    return run


def record_inputs(module):
    """Record the shapes of all inputs of a module."""
    shapes = []
    module.register_forward_pre_hook(lambda _module, args: shapes.append(tuple(args[0].shape)))
    return shapes


@pytest.mark.parametrize(("layer", "states"), [(None, 1), (6, 2)])
def test_a_prompt_runs_once_and_the_head_once_a_step(layer, states, janus, generate):
    """Prefill: both rows of each of 3 prompts; steps: both rows of 5 images."""
    layers = record_inputs(janus.language_model.layers[0])
    features, head = record_inputs(janus.gen_head.proj_out), record_inputs(janus.image_head.linear)
    generate(ImageGenerator(janus, layer=layer))
    lengths = {shape[1] for shape in layers[:3]}
    assert lengths == {16, 32}  # a multiple of 16 that the prompt fits into
    assert sorted(layers) == sorted([(2, n, 128) for n in (16, 16, 32)] + [(10, 1, 128)] * 15)
    assert features == [(states, 10, 1, 128)] * 16
    assert head == [(2, 5, 128)] * 16  # DoLa projects no more rows onto the vocabulary


def test_the_cache_is_allocated_once(janus, generate):
    generator = ImageGenerator(janus, layer=6, max_prompt_length=40)
    generate(generator)
    cache, pointers = generator._cache, [keys.data_ptr() for keys in generator._cache.keys]
    generate(generator, BATCH[:2])
    generate(generator, BATCH[::-1])
    assert generator._cache is cache
    assert [keys.data_ptr() for keys in cache.keys] == pointers
    assert (cache.rows, cache.slots) == (10, 64)  # 40 + 16, rounded up to a multiple of 64
    generate(generator, [*BATCH, (2, 9)])
    assert generator._cache.rows == 12


def test_what_an_earlier_batch_left_in_the_cache_does_not_matter(janus, generate):
    generator = ImageGenerator(janus, layer=6, max_prompt_length=100)
    expected = generate(generator, [(2, 0), (1, 0)])
    for _ in range(2):
        with torch.inference_mode():
            for keys in generator._cache.keys:
                keys.fill_(1e6)
        assert generate(generator, [(2, 0), (1, 0)]) == expected


class Waits(TorchDispatchMode):
    """Records every operation that would make the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        {"layer": None},
        {"layer": 6, "apc": "cond"},
        {"layer": 6, "apc": "intersection", "top_k": 9, "mid_norm": True},
        {"layer": 6, "apc": "union", "top_p": 0.9},
        {"layer": 6, "apc": "per_branch", "temperature": 0.0},
    ],
    ids=str,
)
def test_the_loop_never_waits_for_the_device(settings, janus, generate):
    generator = ImageGenerator(janus, **settings)
    prompts = [janus.pad_token_id] * 5
    with Waits() as waits:
        generator(
            [prompts, prompts[:3]],
            [RequestKey(0, 0), RequestKey(1, 0)],
            lambda step, _: waits.seen.append(step),
        )
    assert waits.seen[:-1] == [*range(1, 17)]  # and once after the loop: were all logits finite?
    assert waits.seen[-1] in ("is_nonzero", "_local_scalar_dense")
    with Waits() as waits:  # it notices a wait
        torch.ones(1).item()
    assert waits.seen == ["_local_scalar_dense"]


@pytest.fixture
def graphs(monkeypatch):
    """Trace instead of compiling, which is faster; returns the number of graphs."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda step, **_: compile(step, backend="eager", fullgraph=True)
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("layer", [None, 6])
@pytest.mark.slow
def test_one_graph_serves_prompts_of_every_length(layer, graphs, janus, generate):
    prompts = ["a " * n for n in range(1, 51)]
    generator = ImageGenerator(janus, layer=layer, max_prompt_length=120, compile=True)
    plain = ImageGenerator(janus, layer=layer, max_prompt_length=120)
    for first in range(0, 50, 4):  # the last batch is smaller
        batch = [(prompt, 0) for prompt in range(first, min(first + 4, 50))]
        assert generate(generator, batch, prompts) == generate(plain, batch, prompts)
    assert graphs() == 1


@pytest.mark.slow
def test_one_graph_serves_windows_after_prompts_of_every_length(graphs, janus, encoder):
    settings = {"layer": 6, "max_new_tokens": 16, "max_prompt_length": 120, "window": 4}
    compiled, plain = (
        PooledGenerator(janus, janus.image_head, make_scoring(), compile=compile, **settings)
        for compile in (True, False)
    )
    for first in range(0, 20, 4):
        ids = [encoder.encode("a " * (5 * n + 1)) for n in range(first, first + 4)]
        branches = [cfg_pair(prompt, janus.pad_token_id) for prompt in ids]
        keys = [RequestKey(n, 0) for n in range(first, first + 4)]
        assert torch.equal(compiled(branches, keys), plain(branches, keys))
    assert graphs() == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
@pytest.mark.slow
def test_a_compiled_step_draws_the_same_tokens(janus, generate):
    """With only two layers, a middle one and the final one, to save compile time."""
    torch._dynamo.reset()
    janus.language_model.layers = janus.language_model.layers[:2]
    plain = generate(ImageGenerator(janus, layer=1))
    generator = ImageGenerator(janus, layer=1, compile=True)
    assert generate(generator) == plain
    assert generate(generator, BATCH[:2]) == plain[:2]


def test_images_that_fit_in_the_memory_of_a_gpu(janus, monkeypatch):
    config = janus.language_model.config
    weight = janus.language_model.embed_tokens.weight
    assert images_that_fit(config, 100, weight) == 16  # on a CPU
    assert images_that_fit(config, 100, weight, rows=1) == 32
    cache = KVCache(config, 2, 100, weight.dtype, weight.device)
    image = sum(buffer.nbytes for buffer in [*cache.keys, *cache.values])
    for images, expected, of_one_row in [
        (7, 7, 15), (64, 64, 128), (1000, 64, 128), (0.1, 1, 1)
    ]:  # fmt: skip
        free = int((images + 0.7) * image / 0.9) + int(2 * 2**30 / 0.9)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device, free=free: (free, 0))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 5)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 5)
        on_gpu = type("Weight", (), {"device": torch.device("cuda"), "element_size": lambda *_: 4})
        assert images_that_fit(config, 100, on_gpu()) == expected
        assert images_that_fit(config, 100, on_gpu(), rows=1) == of_one_row
