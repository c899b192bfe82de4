"""The LightningModule in a trainer: precision, device, layer, and what it hands to the writer."""

import json

import pytest
import torch
from lightning.pytorch import Trainer

from lit_dola.data import PromptDataModule
from lit_dola.decoding import DecodingConfig, ImageKey, ImageTokenGenerator
from lit_dola.module import LitDoLa


@pytest.fixture
def predict(tiny_checkpoint, tmp_path):
    """Generate through Lightning; gives the module and its batches."""

    def run(precision="32-true", **settings):
        path = tmp_path / "prompt.json"
        path.write_text(json.dumps(["a red apple", "two blue birds on a branch"]))
        model = LitDoLa(str(tiny_checkpoint), parallel_size=2, images_per_batch=3, **settings)
        data = PromptDataModule(str(path), str(tiny_checkpoint), "auto", 2, 3)
        trainer = Trainer(
            accelerator="cpu", devices=1, precision=precision, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        return model, trainer.predict(model, data)

    return run


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("64-true", torch.float64), ("bf16-true", torch.bfloat16)],
)
def test_the_model_is_in_the_trainers_precision_and_its_positions_are_not(
    precision, dtype, predict, load, encoder
):
    model, batches = predict(precision)
    weights = model.janus.model.state_dict().values()
    assert {weight.dtype for weight in weights} == {dtype}
    assert model.janus.language_model.rotary_emb.inv_freq.dtype == torch.float32
    requests = [request for batch in batches for request in batch.requests]
    tokens = torch.cat([batch.tokens for batch in batches])
    expected = ImageTokenGenerator(load(dtype), DecodingConfig(layer=6))(
        [request.input_ids for request in requests[:3]],
        [ImageKey(request.prompt.prompt_index, request.image_index) for request in requests[:3]],
    )
    assert torch.equal(tokens[:3].long(), expected)


def test_batches_hold_requests_tokens_and_pixels(predict):
    _, batches = predict()
    assert [len(batch.requests) for batch in batches] == [3, 1]
    for requests, tokens, pixels in batches:
        assert (tokens.dtype, tokens.shape) == (torch.int32, (len(requests), 16))
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (len(requests), 3, 64, 64))


@pytest.mark.parametrize(
    ("settings", "layer"),
    [({}, 6), ({"layer_ratio": 0.4}, 3), ({"layer": 2}, 2), ({"dola": False, "layer": 2}, None)],
)
def test_the_layer_is_resolved_and_recorded(settings, layer, predict):
    model, _ = predict(**settings)
    assert model.image_settings()["layer"] == layer
    assert model.image_settings().keys() >= settings.keys()
