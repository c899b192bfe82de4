"""The LightningModule in a trainer: precision, device, layer, and its predictions."""

import json
import math
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.memory import garbage_collection_cuda

from lit_dola import LitDoLa, PromptDataModule
from lit_dola.data.requests import RequestKey
from lit_dola.decoding.cache import KVCache
from lit_dola.decoding.loop import TokenGenerator
from lit_dola.decoding.scoring import Scoring
from lit_dola.errors import UserError
from lit_dola.janus import packing
from lit_dola.tasks import decode, generate
from tests.support.images import ImageGenerator


@pytest.fixture
def predict(tiny_checkpoint, tmp_path):
    """Generate through Lightning; returns the module and its predictions."""

    def run(precision="32-true", images_per_batch=3, spoil=None, **settings):
        path = tmp_path / "prompt.json"
        path.write_text(json.dumps(["a red apple", "two blue birds on a branch"]))
        model = LitDoLa(
            str(tiny_checkpoint), parallel_size=2, images_per_batch=images_per_batch, **settings
        )
        data = PromptDataModule(str(path))
        trainer = Trainer(
            accelerator="cpu", devices=1, precision=precision, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        if spoil:
            spoil(model)
        return model, trainer.predict(model, data)

    return run


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        pytest.param("64-true", torch.float64, marks=pytest.mark.slow),
        pytest.param("bf16-true", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_the_model_is_in_the_trainers_precision_and_its_positions_are_not(
    precision, dtype, predict, load, encoder
):
    model, batches = predict(precision)
    for part in (model.janus.language_model, model.janus.gen_head):
        assert {weight.dtype for weight in part.state_dict().values()} == {dtype}
    assert model.janus.language_model.rotary_emb.inv_freq.dtype == torch.float32
    requests = [image.request for batch in batches for image in batch.images]
    tokens = torch.stack([image.tokens for batch in batches for image in batch.images])
    expected = ImageGenerator(load(dtype), layer=6)(
        [request.input_ids for request in requests[:3]],
        [RequestKey(request.entry.index, request.image_index) for request in requests[:3]],
    )
    assert torch.equal(tokens[:3].long(), expected)


def test_batches_hold_requests_tokens_and_pixels(predict):
    _, batches = predict()
    assert [len(batch.images) for batch in batches] == [3, 1]
    for images, failures in batches:
        assert failures == []
        for _, tokens, pixels, forwards, at_once, inspection, logprobs in images:
            assert forwards is None  # no window: one pass per token
            assert at_once is None  # it fitted into memory
            assert (inspection, logprobs) == (None, None)
            assert (tokens.dtype, tokens.shape) == (torch.int32, (16,))
            assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 16, 16))


@pytest.mark.parametrize(
    ("settings", "layer"),
    [({}, 6), ({"layer_ratio": 0.4}, 3), ({"layer": 2}, 2), ({"dola": False, "layer": 2}, None)],
)
def test_the_layer_is_resolved_and_recorded(settings, layer, predict):
    model, _ = predict(**settings)
    recorded = model.record_settings(model.plan, "32-true")
    assert recorded["layer"] == layer
    assert recorded.keys() >= settings.keys()


@pytest.mark.slow
def test_on_a_cpu_weights_are_packed_unless_the_step_is_compiled(predict, monkeypatch):
    """An evaluation has one model for variants of both kinds."""
    monkeypatch.setattr(packing, "SMALLEST", 0)
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    janus = None
    for compile in (False, True, False):
        model, _ = predict(compile=compile, spoil=partial(give, janus))
        janus = model.janus
        weight = janus.language_model.layers[0].mlp.up_proj.weight
        assert isinstance(weight, packing.PackedWeight) is not compile


def give(janus, model):
    if janus is not None:
        model.janus = janus


def gather(batches):
    """Tokens and pixels of each image by prompt and image index."""
    return {
        (*image.request.key,): (image.tokens.tolist(), image.pixels.tolist())
        for batch in batches
        for image in batch.images
    }


def enough_for(
    images, sizes, message="CUDA out of memory. Tried to allocate 20.00 MiB.", times=math.inf
):
    """A token loop that runs out of memory above so many images, and records its batch sizes."""

    def spoil(model):
        make = model.make_generator

        def make_small():
            generate = make()

            def small(prompts, keys, *rest, **more):
                sizes.append(len(prompts))
                if len(prompts) > images and len(sizes) <= times:
                    raise torch.OutOfMemoryError(message)
                return generate(prompts, keys, *rest, **more)

            small.forwards = small.logprobs = None
            return small

        model.make_generator = make_small

    return spoil


def warned(caplog):
    return [
        record.getMessage() for record in caplog.records if record.name == "lit_dola.tasks.decode"
    ]


@pytest.mark.parametrize(
    ("images", "expected"),
    [(4, [4]), (3, [4, 2, 2]), (2, [4, 2, 2]), (1, [4, 2, 1, 1, 1, 1])],
)
@pytest.mark.slow
def test_a_batch_too_large_for_the_memory_is_split(images, expected, predict, caplog):
    sizes = []
    _, whole = predict(images_per_batch=4)
    _, split = predict(images_per_batch=4, spoil=enough_for(images, sizes))
    assert sizes == expected
    assert gather(split) == gather(whole)
    told = [f"out of memory: continuing with at most {expected[-1]} images at once"]  # once
    assert warned(caplog) == (told if len(expected) > 1 else [])


def test_the_smaller_size_is_remembered(predict, caplog):
    sizes = []
    predict(images_per_batch=3, spoil=enough_for(1, sizes))
    assert sizes == [3, 1, 1, 1, 1]
    assert warned(caplog) == ["out of memory: continuing with at most 1 images at once"]


def test_in_low_precision_a_divided_batch_is_told_and_recorded(predict, caplog):
    _, (batch,) = predict("bf16-true", 4, spoil=enough_for(2, []))
    assert [image.at_once for image in batch.images] == [2] * 4
    (told,) = warned(caplog)
    assert told == (
        "out of memory: continuing with at most 2 images at once; in bf16-true they may"
        " differ slightly from those of whole batches: see their records"
    )


@pytest.mark.slow
def test_rows_that_are_refilled_become_fewer_too(predict, caplog):
    """A step has four batches; it begins again with half as many rows."""
    tried = []

    def spoil(model):
        make = model.make_generator

        def make_small():
            generate = make()
            tried.append(generate.places)
            begin = generate._begin

            def begin_if_it_fits(pool, cache, begun, *rest):
                if generate.places > 1 and len(tried) < 3 and 2 in begun.values():
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return begin(pool, cache, begun, *rest)

            generate._begin = begin_if_it_fits
            return generate

        model.make_generator = make_small

    _, whole = predict(images_per_batch=4)
    _, pooled = predict(images_per_batch=2, speculative=4, spoil=spoil)
    assert tried == [2, 1]
    assert len(pooled) == 1
    assert gather(pooled) == gather(whole)
    assert warned(caplog) == ["out of memory: continuing with at most 1 images at once"]


def test_only_on_a_gpu_and_in_low_precision_batches_are_filled_up():
    """There the number of rows decides how sums are rounded."""
    fill_to = decode.DecodingModule.fill_to.fget

    def of(device, is_exact, at_once=None):
        return fill_to(
            SimpleNamespace(device=torch.device(device), is_exact=is_exact, places=at_once or 8)
        )

    assert of("cuda", False) == 8
    assert of("cuda", False, at_once=2) == 2
    assert of("cuda", True) == of("cpu", False) == of("cpu", True) == 1


def test_a_batch_that_was_filled_up_is_divided_too(predict, monkeypatch):
    monkeypatch.setattr(decode.DecodingModule, "fill_to", property(lambda self: self.at_once or 4))
    sizes = []
    predict(images_per_batch=1, spoil=enough_for(0, sizes, times=2))
    assert sizes == [1] * 6  # twice in vain, then each of the four images


def test_memory_too_small_for_one_image(predict):
    with pytest.raises(UserError, match=r"out of memory at 1 image.*--model\.quantize int8wo"):
        predict(spoil=enough_for(0, []))


def test_memory_too_small_for_the_weights(predict, monkeypatch):
    def load(*_args, **_settings):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(generate, "load_janus", load)
    with pytest.raises(UserError, match="out of memory at the weights"):
        predict()


def test_another_error_is_not_taken_for_a_lack_of_memory(predict):
    with pytest.raises(RuntimeError, match="something else"):
        predict(spoil=enough_for(2, [], "something else"))


def test_the_memory_is_given_back_before_the_next_try(predict, monkeypatch):
    """No frame of the error may keep the cache that was too large alive."""
    caches = []
    allocate = TokenGenerator._cache_for

    def allocate_little(generator, *sizes):
        caches.append(weakref.ref(allocate(generator, *sizes)))
        if caches[-1]().rows > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return caches[-1]()

    def collect():
        garbage_collection_cuda()
        assert all(cache() is None for cache in caches)

    monkeypatch.setattr(TokenGenerator, "_cache_for", allocate_little)
    monkeypatch.setattr(decode, "garbage_collection_cuda", collect)
    predict(images_per_batch=4)
    assert len(caches) == 3


def test_images_whose_logits_are_not_finite_are_set_aside(predict):
    """The other images of the batch are not affected."""

    def poison(model):
        def configure():
            type(model).configure_model(model)
            steps = []

            def spoil_one(_layer, _args, hidden_states):
                if hidden_states.shape[1] == 1:  # not a prefill
                    steps.append(None)
                if len(steps) == 2:
                    hidden_states[1] = float("nan")

            model.janus.language_model.layers[-1].register_forward_hook(spoil_one)

        model.configure_model = configure

    _, whole = predict(images_per_batch=4)
    _, batches = predict(images_per_batch=4, spoil=poison)
    (failure,) = batches[0].failures
    key = failure.prompt_index, failure.image_index
    assert failure.prompt == "a red apple"
    assert failure.reason.startswith(
        f"entry {key[0]}: image {key[1]}: the model's logits are NaN or infinite at step 2;"
    )
    expected = gather(whole)
    del expected[key]
    assert gather(batches) == expected


@pytest.mark.parametrize(
    ("settings", "branches"),
    [
        ({}, 2),
        ({"cfg_weight": 1.0}, 1),
        ({"cfg_weight": 1.0, "dola": False, "apc": "union"}, 1),
        ({"cfg_weight": 1.0, "apc": "union"}, 2),
        ({"cfg_weight": 1.0, "negative_prompt": "blurry", "speculative": 4}, 1),
    ],
)
@pytest.mark.slow
def test_rows_of_a_batch(settings, branches, predict):
    rows = []

    def note(cache, config, count, *args):
        rows.append(count)
        init(cache, config, count, *args)

    init = KVCache.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "__init__", note)
        model, (batch,) = predict(images_per_batch="auto", **settings)
    assert rows == [4 * branches]
    assert model.branches == branches
    two = {**settings, "cfg_weight": 1.0}
    if branches == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Scoring, "uses_guidance", True)
            _, (other,) = predict(images_per_batch="auto", **two)
        assert gather([batch]) == gather([other])


@pytest.mark.parametrize(("cfg_weight", "images"), [(5.0, 16), (1.0, 32)])
def test_batches_without_guidance_are_twice_as_large(cfg_weight, images, tiny_checkpoint):
    model = LitDoLa(str(tiny_checkpoint), cfg_weight=cfg_weight, parallel_size=50, seed=1)
    data = PromptDataModule(prompts=["a cat"])
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_predict_batches=1,
    )  # fmt: skip
    (batch,) = trainer.predict(model, data)
    assert len(batch.images) == images
