"""DeepSeek's own package as the backend; the last test needs it to be installed."""

import sys
from importlib import invalidate_caches
from importlib.util import find_spec

import pytest
import torch

from lit_dola.data.requests import RequestKey
from lit_dola.errors import UserError
from lit_dola.janus import deepseek
from lit_dola.janus.tokenizer import PromptEncoder
from tests.support import original
from tests.support.images import ImageGenerator, load_folder

installed = find_spec("janus") is not None and find_spec("janus.models") is not None


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Put a package named ``janus`` on the path, hiding any installed one."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "janus"]:
            del sys.modules[name]

    before = {name: module for name, module in sys.modules.items() if name.startswith("janus")}

    def put(*modules):
        forget()
        for module in modules:
            path = tmp_path / module
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        invalidate_caches()

    yield put
    forget()
    sys.modules.update(before)


def error_of_check():
    with pytest.raises(UserError) as caught:
        deepseek.check_installed()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(installed, reason="DeepSeek's janus is installed")
def test_not_installed():
    assert "DeepSeek's janus is not installed; install it from" in error_of_check()


def test_the_registrys_asyncio_queue(package):
    package("janus/__init__.py")
    assert "is the asyncio queue of that name, not DeepSeek's; pip uninstall" in error_of_check()


def test_transformers_too_new(package, monkeypatch):
    package("janus/__init__.py", "janus/models/__init__.py")
    monkeypatch.setattr(deepseek, "version", lambda name: "5.1.0")
    assert "cannot be imported under transformers 5.1.0; pip install" in error_of_check()


def test_all_is_well(package, monkeypatch):
    package("janus/__init__.py", "janus/models/__init__.py")
    monkeypatch.setattr(deepseek, "version", lambda name: "4.57.6")
    deepseek.check_installed()


def test_a_checkpoint_in_transformers_layout(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(deepseek, "check_installed", lambda: None)
    with pytest.raises(UserError, match="which is in transformers' layout; use backend 'trans"):
        load_folder(tiny_checkpoint, pad_token_id=2, backend="deepseek")


@pytest.mark.skipif(not installed, reason="DeepSeek's janus is not installed")
def test_same_tokens_and_pixels_as_the_native_backend(tmp_path):
    config = original.make_config(64, 128, 4, 4, vocab_size=512, image_size=64)
    original.write_config(tmp_path, config)
    original.write_weights(tmp_path, original.small_weights(config), "model.safetensors")
    encoder = PromptEncoder(tmp_path)
    prompts = [encoder.encode("a red apple"), encoder.encode("two blue birds on a branch")]
    made = []
    for backend in ("transformers", "deepseek"):
        janus = load_folder(
            tmp_path, pad_token_id=encoder.pad_token_id, dtype=torch.float32, backend=backend
        )
        generate = ImageGenerator(janus, layer=3)
        tokens = generate(prompts, [RequestKey(0, 0), RequestKey(1, 0)])
        with torch.no_grad():
            made.append((tokens, janus.decode_image_tokens(tokens)))
    (ours, our_pixels), (theirs, their_pixels) = made
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(our_pixels, their_pixels, atol=1e-4, rtol=0)
