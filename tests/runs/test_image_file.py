"""Files that are whole, and files that are not."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lit_dola.errors import UserError
from lit_dola.runs.image_file import encode_image, is_whole, read_image

RECORD = {"prompt": "a 猫", "prompt_index": 0, "image_index": 0}


def content(suffix):
    """The content of a file of each kind that a run writes."""
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    if suffix in ("jpg", "png", "webp"):
        return encode_image(Image.fromarray(pixels), RECORD, suffix, 90)
    file = BytesIO()
    if suffix == "npy":
        np.save(file, np.arange(576, dtype=np.int32))
    else:
        np.savez(file, token=np.arange(9), entropy_before=np.ones((3, 3)))
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "npy", "npz"])
def test_whole_means_to_the_last_byte(suffix, tmp_path):
    whole = content(suffix)
    path = tmp_path / f"img_00.{suffix}"
    path.write_bytes(whole)
    assert is_whole(path)
    lengths = [0, 1, 7, 100, 300, *(len(whole) * part // 10 for part in range(1, 10))]
    for length in [*lengths, *range(len(whole) - 16, len(whole))]:
        path.write_bytes(whole[:length])
        assert not is_whole(path), length
    path.write_bytes(b"\0" * len(whole))  # as after a power cut on some file systems
    assert not is_whole(path)
    path.unlink()
    assert not is_whole(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_image_that_cannot_be_read_is_one_line_that_names_it(suffix, tmp_path):
    whole = content(suffix)
    path = tmp_path / f"img_00.{suffix}"
    for broken in (b"", whole[:20], whole[: len(whole) // 2], b"text", whole[8:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=rf"img_00\.{suffix}: not readable as an image"):
            read_image(path)
