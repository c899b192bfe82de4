"""Fixtures that several rooms share. Slow imports are inside: the controller of xdist has none."""

import os
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

if find_spec("hypothesis"):  # a machine with a GPU may have pytest alone
    from hypothesis import settings

    # Searches try the same examples each time; `make test-thorough` tries more of them, and others.
    settings.register_profile(
        "quick", max_examples=100, deadline=None, derandomize=True, database=None
    )
    settings.register_profile("thorough", max_examples=1500, deadline=None)
    settings.load_profile("quick")

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network
os.environ["OMP_NUM_THREADS"] = "1"  # the models are too small for several threads


@pytest.fixture(autouse=True)
def _environment():
    """Restore the environment: training with two processes leaves its port in MASTER_PORT.

    Every later run with two ranks would ask for that port, free or not.
    """
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A random Janus in transformers' layout, with images of 4 x 4 tokens of 4 x 4 pixels."""
    from transformers.utils.logging import disable_progress_bar

    from recipes.small_janus import make_random_janus

    disable_progress_bar()  # the first test to ask for it may look at stderr
    folder = tmp_path_factory.mktemp("random-janus")
    make_random_janus(folder, image_size=16, channel_multiplier=(1, 2, 2))
    return folder


@pytest.fixture(scope="session")
def encoder(tiny_checkpoint):
    from lit_dola.janus.tokenizer import PromptEncoder

    return PromptEncoder(tiny_checkpoint)


@pytest.fixture(scope="session")
def load(tiny_checkpoint, encoder):
    """Load the random Janus as LitDoLa does, in a given dtype."""
    from tests.support.images import load_folder

    def load_in(dtype, **settings):
        return load_folder(
            tiny_checkpoint, pad_token_id=encoder.pad_token_id, dtype=dtype, **settings
        )

    return load_in


@pytest.fixture(scope="session")
def reference_model(tiny_checkpoint):
    """transformers' own Janus in float64, in the terms of the plain reference."""
    import torch
    from transformers import JanusForConditionalGeneration

    from tests.support import reference

    return reference.TransformersJanus(
        JanusForConditionalGeneration.from_pretrained(
            tiny_checkpoint, dtype=torch.float64, attn_implementation="eager"
        ).eval()
    )


@pytest.fixture
def prompt_file(tmp_path):
    """Write a prompt file."""

    def write(content, name="prompt.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def main_here(monkeypatch, capsys):
    """Run the command line in this process and a given folder."""
    from lit_dola.cli import main

    def run(folder, *args):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["main.py"])
        code = 0
        try:
            main([*map(str, args)])
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=captured.out, stderr=captured.err)

    return run
