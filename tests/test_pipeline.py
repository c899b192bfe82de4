"""The Python interface returns the same images as the command line."""

import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import lit_dola
from lit_dola import JanusPipeline
from lit_dola.errors import UserError
from tests.support import forked
from tests.support.commands import CPU

PROMPTS = ["two blue birds on a branch in the morning", "a red apple"]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return JanusPipeline.from_pretrained(str(tiny_checkpoint))


@pytest.mark.slow
def test_images_are_those_of_the_command_line(pipeline, tiny_checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    done = forked.run(
        tmp_path,
        [
            "predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2",
            "--data.prompt_json=prompts.txt", "--model.alpha=0.3", "--model.seed=5",
            "--writer.save_tokens=true", "--writer.format=png",
        ],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = pipeline.generate(PROMPTS, alpha=0.3, seed=5, parallel_size=2, images_per_batch=3)
    tokens = [np.load(path) for path in sorted(tmp_path.rglob("*.npy"))]
    assert made.tokens.dtype == torch.int32
    assert np.array_equal(made.tokens.numpy(), np.stack(tokens))
    for image, path in zip(made.images, sorted(tmp_path.rglob("*.png")), strict=True):
        with Image.open(path) as written:
            assert np.array_equal(np.asarray(image), np.asarray(written))


def test_dola_off_is_the_baseline(pipeline):
    with_dola, without = (pipeline.generate("a red apple", dola=on, parallel_size=1)
                          for on in (True, False))  # fmt: skip
    assert not torch.equal(with_dola.tokens, without.tokens)
    again = pipeline.generate(["a red apple"], dola=False, alpha=0.7, parallel_size=1)
    assert torch.equal(again.tokens, without.tokens)


def test_tokens_decode_to_the_same_images(pipeline):
    made = pipeline.generate(PROMPTS, parallel_size=1)
    decoded = pipeline.decode(made.tokens)
    assert [np.asarray(image).tolist() for image in decoded] == [
        np.asarray(image).tolist() for image in made.images
    ]


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ("a", {"alpha": 2}, "alpha.*v>=0 and v<=1"),
        ("a", {"alhpa": 0.2}, "alhpa: not a setting of the model; did you mean alpha"),
        ("a", {"quantize": "int8wo"}, "quantize: not a setting of generate"),
        ([], {}, "prompts: empty"),
        (["a", " "], {}, "prompts: entry 1: prompt is empty"),
        ("word " * 9000, {}, "prompts: entry 0: prompt has .* tokens; expected at most"),
        ("a", {"layer": 99}, "model.layer: 99 is not a middle layer"),
    ],
)
def test_errors(pipeline, prompts, settings, message):
    with pytest.raises(UserError, match=message):
        pipeline.generate(prompts, **settings)


def test_a_checkpoint_that_is_not_there():
    with pytest.raises(UserError, match=r"no folder '\./nowhere'"):
        JanusPipeline.from_pretrained("./nowhere")
    with pytest.raises(UserError, match=r"dtype: torch.int8; expected one of torch.float32"):
        JanusPipeline.from_pretrained("checkpoints/shapes-janus", dtype=torch.int8)


@pytest.mark.slow
def test_bfloat16(tiny_checkpoint):
    pipeline = JanusPipeline.from_pretrained(str(tiny_checkpoint), dtype=torch.bfloat16)
    assert pipeline.janus.language_model.embed_tokens.weight.dtype == torch.bfloat16
    assert pipeline.generate("a red apple", parallel_size=1).tokens.shape == (1, 16)
    assert torch.get_default_dtype() == torch.float32


def test_nothing_is_left_changed(pipeline, capfd):
    level, filters = logging.getLogger("lightning.pytorch").level, [*warnings.filters]
    pipeline.generate("a red apple", parallel_size=1)
    assert logging.getLogger("lightning.pytorch").level == level
    assert warnings.filters == filters
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_maths_needs_no_lightning(tmp_path):
    assert "JanusPipeline" in lit_dola.__all__
    with pytest.raises(AttributeError, match="nothing"):
        lit_dola.nothing  # noqa: B018

    code = "import sys, lit_dola.dola; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
