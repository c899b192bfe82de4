"""Checkpoints whose files say anything: one line that names the file, or images."""

import json
import shutil
from zlib import crc32

import numpy as np
import pytest

from lit_dola import JanusPipeline
from lit_dola.errors import UserError
from recipes.small_janus import make_random_janus
from tests.support import original

VALUES = [None, "x", "", -1, 0, 3, 1.5, float("nan"), 2**40, True, [], [None], {}, {"a": {"b": 1}}]
DEEP = "[" * 100_000
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
CONTENTS = ["", "{", "[]", "null", "3", '"x"', DEEP, LFS, "\x00\x01", "{}"]


@pytest.fixture(scope="module", params=["janus", "multi_modality"])
def checkpoint(request, tmp_path_factory):
    """A sound checkpoint in each layout, with images of 2 x 2 tokens."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "janus":
        make_random_janus(folder, image_size=8, channel_multiplier=(1, 2, 2))
        return folder
    config = original.make_config(64, 128, 2, 4, vocab_size=512, image_size=32)
    original.write_config(folder, config)
    original.write_weights(folder, original.small_weights(config), "pytorch_model.bin", shards=2)
    return folder


@pytest.fixture
def hostile(checkpoint, tmp_path):
    """Copy the checkpoint; its weights are links."""

    def copy():
        folder = tmp_path / "hostile"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in checkpoint.iterdir():
            if path.suffix in (".json", ".jinja"):
                shutil.copy(path, folder)
            else:
                (folder / path.name).symlink_to(path)
        return folder

    return copy


def draws_or_says_why(folder):
    """Draw an image; returns the error's line, or None if there is an image."""
    reason = None
    try:
        made = JanusPipeline.from_pretrained(folder).generate("a red cat", parallel_size=1)
        (image,) = made.images
    except UserError as error:
        reason = str(error)
    if reason is None:
        assert np.asarray(image).shape[2] == 3
    else:
        assert reason.strip()
        assert "weights_only" not in reason
    return reason


def places(value, path=()):
    """Every place of a JSON document."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    most = 40 if isinstance(value, dict) else 8  # of a list of thousands of merges
    for key, part in list(inner)[:most]:
        yield from places(part, (*path, key))


def put(document, path, value):
    *outer, last = path
    for key in outer:
        document = document[key]
    if value is put:
        del document[last]
    else:
        document[last] = value


@pytest.mark.slow
def test_any_value_at_any_place_of_any_file(checkpoint, hostile):
    """Every key of every file once, each with a value that depends on its name."""
    folder = hostile()
    for file in sorted(path.name for path in checkpoint.glob("*.json")):
        text = (checkpoint / file).read_text()
        for path in list(places(json.loads(text)))[1:]:
            document = json.loads(text)
            place = crc32(repr((file, path)).encode())
            value = [*VALUES, put][place % (len(VALUES) + 1)]
            put(document, path, value)
            (folder / file).write_text(json.dumps(document))
            try:
                draws_or_says_why(folder)
            except Exception as error:
                raise AssertionError(f"{file}: {path} = {value!r}") from error
        (folder / file).write_text(text)


@pytest.mark.slow
def test_any_content_of_any_file(checkpoint, hostile):
    folder = hostile()
    for source in sorted(checkpoint.iterdir()):
        whole = source.read_bytes()
        path = folder / source.name
        for content in [*(text.encode() for text in CONTENTS), whole[: len(whole) // 2], None]:
            path.unlink(missing_ok=True)
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)
            try:
                draws_or_says_why(folder)
            except Exception as error:
                raise AssertionError(f"{source.name}: {content and content[:40]!r}") from error
            path.rmdir() if content is None else path.unlink()
        path.write_bytes(whole)
    assert draws_or_says_why(folder) is None
