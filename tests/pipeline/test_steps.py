"""Seeds of images, previews while they are drawn, and inspections, from Python."""

import json

import numpy as np
import pytest
import torch

from lit_dola import JanusPipeline
from lit_dola.errors import UserError
from lit_dola.tasks.preview import GREY
from tests.support import forked
from tests.support.commands import CPU, files

PROMPTS = ["two blue birds on a branch in the morning", "a red apple"]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return JanusPipeline.from_pretrained(str(tiny_checkpoint))


def pixels(image):
    return np.asarray(image.convert("RGB"))


@pytest.mark.slow
def test_each_image_has_its_own_seed(pipeline):
    """Whatever the batches, and in the order of the result although short prompts come first."""
    seeds = [7, 0, 2**32 - 1, 7]
    made = pipeline(PROMPTS, seed=seeds, images_per_batch=3, progress=False)
    assert [record.settings["seed"] for record in made.records] == seeds
    assert [json.loads(image.info["parameters"])["seed"] for image in made.images] == seeds
    for place, seed in enumerate(seeds):
        alone = pipeline(PROMPTS, seed=seed, parallel_size=2, progress=False)
        assert torch.equal(made.tokens[place], alone.tokens[place])
    assert "seed=[7, 0, 4294967295]" in repr(made)


@pytest.mark.parametrize("speculative", [None, 4])
def test_a_preview_shows_what_is_drawn(pipeline, speculative):
    """Complete rows of tokens are shown, the others are grey; at the end it is the image."""
    steps = []

    def keep(step):
        drawn = (step.tokens >= 0).sum(dim=1).tolist()
        steps.append((step.index, step.count, drawn, step.preview(), [*step.requests]))

    how = {"parallel_size": 2, "speculative": speculative, "progress": False}
    made = pipeline("a red apple", callback_on_step=keep, **how)
    assert torch.equal(made.tokens, pipeline("a red apple", **how).tokens)
    for index, count, drawn, previews, requests in steps:
        assert (count, index) == (16, sum(drawn) // 2)
        assert [request.key for request in requests] == [(0, 0), (0, 1)]
        for tokens, preview in zip(drawn, previews, strict=True):
            rows = tokens // 4 * 16
            assert (pixels(preview)[rows:] == GREY).all()
            assert not rows or (pixels(preview)[:rows] != GREY).any()
    for preview, image in zip(steps[-1][3], made.images, strict=True):
        assert np.array_equal(pixels(preview), pixels(image))


def test_a_callback_can_end_the_call(pipeline):
    class EnoughError(Exception):
        pass

    def stop(step):
        if step.index == 3:
            raise EnoughError

    with pytest.raises(EnoughError):
        pipeline("a red apple", parallel_size=1, callback_on_step=stop, progress=False)
    assert len(pipeline("a red apple", parallel_size=1, progress=False)) == 1


@pytest.mark.slow
def test_inspected_images_are_those_of_the_command_line(pipeline, tiny_checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    done = forked.run(
        tmp_path,
        [
            "predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=1",
            "--data.prompt_json=prompts.txt", "--model.alpha=0.3", "--writer.output_dir=a/run",
            "--model.inspect=[[0,0],[1,0]]",
        ],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = pipeline(PROMPTS, alpha=0.3, parallel_size=1, inspect=True, progress=False)
    made.save(tmp_path / "b/run")
    assert files(tmp_path / "b/run") == files(tmp_path / "a/run")
    assert len([name for name in files(tmp_path / "b/run") if ".inspect." in name]) == 4


@pytest.mark.slow
def test_an_inspection_has_arrays_and_a_figure(pipeline):
    made = pipeline(PROMPTS, alpha=0.3, seed=[3, 4], inspect=True, progress=False)
    alone = pipeline(PROMPTS, alpha=0.3, seed=4, parallel_size=1, inspect=True, progress=False)
    assert [found.token.tolist() for found in made.inspections] == made.tokens.tolist()
    for one, other in zip(made.inspections[1], alone.inspections[1], strict=True):
        assert torch.equal(one, other)  # with the noise of the image's own seed
    figure = made.figure(1)
    title = figure.get_suptitle()
    assert title.startswith("a red apple\n")
    assert "alpha 0.3, strength 1.0" in title
    assert title.endswith("seed 4, image 0")
    assert len(figure.axes) == 6 + 3  # both entropies have one colour bar
    with pytest.raises(UserError, match="figure: the images were not inspected; expected inspect"):
        pipeline("a", parallel_size=1, progress=False).figure()


def test_a_notebook_shows_the_images(pipeline):
    made = pipeline("a red apple", parallel_size=3, progress=False)
    assert made._repr_png_().startswith(b"\x89PNG")
