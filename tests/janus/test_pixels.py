"""What the vision tower takes, against transformers' processor and DeepSeek's formulas."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lit_dola.errors import UserError
from lit_dola.janus.pixels import PixelProcessor
from tests.support.questions import newest_processor

SIZES = [(48, 48), (200, 120), (333, 777), (1, 1), (5, 400), (1000, 3), (97, 96), (31, 64)]


def noise(width, height):
    generator = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
@newest_processor
def test_transformers_own_pixels(size):
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    theirs = JanusImageProcessorPil(
        size={"height": 48, "width": 48}, min_size=14, image_mean=[0.5, 0.4, 0.3],
        image_std=[0.5, 0.2, 0.1],
    )  # fmt: skip
    ours = PixelProcessor(48, 14, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1), preprocess="transformers")
    expected = theirs(noise(*size), return_tensors="pt").pixel_values[0]
    assert torch.equal(ours(noise(*size)), expected)


@pytest.mark.parametrize(
    ("size", "scaled"),
    # int(97 / 193 * 48) is 24, and 97 * (48 / 193) is rounded to 24; 95 / 193 * 48 = 23.6
    [((193, 95), (48, 23)), ((95, 193), (23, 48)), ((48, 48), (48, 48)), ((1000, 3), (48, 14))],
)
def test_deepseek_truncates_the_scaled_side(size, scaled):
    image = Image.new("RGB", size, "red")
    square = np.asarray(PixelProcessor(48).to_square(image))
    assert square.shape == (48, 48, 3)
    is_padding = (square == 127).all(axis=-1)
    rows, columns = (~is_padding.all(axis=axis) for axis in (1, 0))
    assert (int(columns.sum()), int(rows.sum())) == scaled
    for side, used in (rows, scaled[1]), (columns, scaled[0]):
        assert int(side.argmax()) == (48 - used) // 2


@pytest.mark.parametrize(
    "config",
    [
        {"image_size": 384, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "min_size": 14},
        {"size": {"height": 384, "width": 384}, "image_mean": [0.5] * 3},
    ],
)
def test_both_layouts(config, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert PixelProcessor.of(tmp_path) == PixelProcessor(384)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "the image's size is None; expected"),
        ({"image_size": "384"}, "the image's size is '384'; expected"),
        (
            {"image_size": 48, "image_mean": [0.5]},
            r"image_mean is \[0\.5\]; expected three numbers",
        ),
        ({"image_size": 48, "image_std": [0, 1, 1]}, "image_std is .*; expected three numbers"),
        ({"image_size": 48, "min_size": -1}, "min_size is -1; expected a number above 0"),
        ({"image_size": 48, "rescale_factor": None}, "rescale_factor is None; expected"),
    ],
)
def test_broken_configs(config, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        PixelProcessor.of(tmp_path)
