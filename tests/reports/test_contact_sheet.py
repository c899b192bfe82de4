"""The contact sheet: names that can be read, frames around images only."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from lit_dola.reports.contact_sheet import write_contact_sheet

FRAMES = {True: (40, 160, 60), False: (220, 35, 40)}


@pytest.fixture
def sheet(tmp_path):
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "image.png")

    def make(names, right, prompts=("a cat", "a dog"), size=40):
        write_contact_sheet(
            tmp_path / "sheet.png",
            list(prompts),
            {name: [tmp_path / "image.png"] * len(prompts) for name in names},
            {name: [right] * len(prompts) for name in names},
            size=size,
        )
        with Image.open(tmp_path / "sheet.png") as image:
            return np.asarray(image.convert("RGB"))

    return make


def rows_with(pixels, test):
    return {int(row) for row in np.flatnonzero(test(pixels).any(axis=1))}


def is_text(pixels):
    """Gray, as names are."""
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    return (spread < 3) & (pixels.max(axis=2) < 200)


@pytest.mark.parametrize("right", [True, False])
def test_no_frame_lies_on_a_name(right, sheet):
    pixels = sheet(["plain", "qgjpy-descends"], right)
    frames = rows_with(pixels, lambda p: (p == FRAMES[right]).all(axis=2))
    names = rows_with(pixels[40:], is_text)
    assert frames
    assert names
    assert not frames & {row + 40 for row in names}


def test_a_long_name_is_not_cut(sheet):
    name = "cfg_weight-5-strength-0.2-alpha-0.005-mid_norm-true"
    pixels = sheet([name], True, prompts=["a cat"])
    width = ImageFont.load_default(13).getlength(name)
    assert pixels.shape[1] >= width
    inked = np.flatnonzero(is_text(pixels).any(axis=0))
    assert inked.max() < pixels.shape[1] - 1
