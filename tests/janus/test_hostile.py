"""Checkpoints whose files say anything: one line that names the file, or images."""

import json
import shutil
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image

from lit_dola import JanusPipeline
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import load_understanding
from lit_dola.janus.pixels import PixelProcessor
from lit_dola.judges.siglip import Siglip, SiglipCheckpoint
from recipes.small_janus import make_random_janus
from tests.support import original
from tests.support.siglips import make_siglip
from tests.support.strategies import share

VALUES = [None, "x", "", -1, 0, 3, 1.5, float("nan"), 2**40, True, [], [None], {}, {"a": {"b": 1}}]
PICTURE = Image.new("RGB", (1, 1), "red")
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
    """A share of the keys of every file, each with a value that depends on its name."""
    folder = hostile()
    for file in sorted(path.name for path in checkpoint.glob("*.json")):
        spoil_each_place(
            checkpoint / file, folder / file, VALUES, lambda: draws_or_says_why(folder)
        )


def spoil_each_place(source, file, values, use):
    """Put values at a share of the places of a file, one at a time, and use the file."""
    text, values = source.read_text(), [*values, put]
    for _, path in share((file.name, path) for path in list(places(json.loads(text)))[1:]):
        document = json.loads(text)
        value = values[crc32(repr((file.name, path)).encode()) % len(values)]
        put(document, path, value)
        file.write_text(json.dumps(document))
        try:
            use()
        except Exception as error:
            raise AssertionError(f"{file.name}: {path} = {value!r}") from error
    file.write_text(text)


@pytest.mark.slow
def test_any_content_of_any_file(checkpoint, hostile):
    folder = hostile()
    for source in sorted(checkpoint.iterdir()):
        whole = source.read_bytes()
        path = folder / source.name
        contents = [*(text.encode() for text in CONTENTS), whole[: len(whole) // 2], None]
        for _, content in share((source.name, content) for content in contents):
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


LARGE = [1e30, float("inf"), 100_000, 2**63, [0.5, 0.5], [1e30] * 3]


def sees_or_says_why(folder):
    """Look at a picture through the understanding path; returns the error's line, or None."""
    try:
        checkpoint = Checkpoint.open(str(folder))
        pixels = PixelProcessor.of_checkpoint(checkpoint)
        janus = load_understanding(checkpoint, pad_token_id=0)
        seen = janus.embed_picture(pixels(PICTURE))
    except UserError as error:
        return str(error)
    assert seen.shape[0] == checkpoint.num_image_tokens
    return None


def compares_or_says_why(folder):
    """Compare a picture with a text by a SigLIP; returns the error's line, or None."""
    try:
        checkpoint = SiglipCheckpoint.open(str(folder))
        siglip = Siglip(checkpoint, torch.float32, torch.device("cpu"))
        picture = siglip.embed_picture(PICTURE, 1 if checkpoint.num_layers > 1 else None)
        logits = siglip.logits(picture, siglip.embed_text("a cat")[None])
    except UserError as error:
        return str(error)
    assert logits.isfinite().all()
    return None


@pytest.fixture(scope="module", params=["understanding", "siglip"])
def seeing(request, tiny_checkpoint, tmp_path_factory):
    """A checkpoint that looks at pictures, and the function that uses it."""
    if request.param == "understanding":
        return tiny_checkpoint, sees_or_says_why
    folder = tmp_path_factory.mktemp("siglip") / "model"
    make_siglip(folder)
    return folder, compares_or_says_why


@pytest.mark.slow
def test_any_value_at_any_place_of_what_looks_at_pictures(seeing, tmp_path):
    source, use = seeing
    folder = tmp_path / "hostile"
    shutil.copytree(source, folder)
    assert use(folder) is None
    for file in ("config.json", "preprocessor_config.json", "processor_config.json"):
        if (source / file).exists():
            values = [*VALUES, *LARGE]
            spoil_each_place(source / file, folder / file, values, lambda: use(folder))


NAMED = [
    (
        "understanding",
        "preprocessor_config.json",
        ("min_size",),
        1e30,
        "min_size is 1e+30; expected",
    ),
    ("understanding", "preprocessor_config.json", ("min_size",), 100_000, "min_size is 100000"),
    ("understanding", "preprocessor_config.json", ("min_size",), float("inf"), ""),
    ("siglip", "preprocessor_config.json", ("image_mean",), [0.5, 0.5], ""),
    ("siglip", "preprocessor_config.json", ("image_std",), None, ""),
    ("siglip", "preprocessor_config.json", ("size", "height"), "x", ""),
    ("siglip", "preprocessor_config.json", ("size", "width"), 3, ""),
    ("siglip", "config.json", ("vision_config", "num_hidden_layers"), -1, ""),
    ("siglip", "config.json", ("vision_config", "num_hidden_layers"), 3, "left over: "),
    ("siglip", "config.json", ("text_config", "num_hidden_layers"), 3, "left over: "),
    ("siglip", "config.json", ("vision_config", "num_hidden_layers"), 5, "missing: "),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "file", "path", "value", "message"), NAMED)
def test_what_is_known_to_be_wrong(kind, file, path, value, message, tiny_checkpoint, tmp_path):
    folder, use = tmp_path / "model", sees_or_says_why
    if kind == "siglip":
        make_siglip(folder)
        use = compares_or_says_why
    else:
        shutil.copytree(tiny_checkpoint, folder)
    if kind == "siglip" and file == "preprocessor_config.json":
        processor = json.loads((folder / "processor_config.json").read_text())
        if "image_processor" in processor:  # as transformers 5 writes it
            file, path = "processor_config.json", ("image_processor", *path)
    document = json.loads((folder / file).read_text())
    put(document, path, value)
    (folder / file).write_text(json.dumps(document))
    reason = use(folder)
    assert reason is not None
    assert message in reason
    assert "\n" not in reason
