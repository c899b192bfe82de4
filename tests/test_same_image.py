"""In bfloat16, too, an image does not depend on its company: neighbours, batch, ranks, resuming."""

import json

import numpy as np
import pytest

from tests.support import forked
from tests.support.commands import ROOT, ddp, records, succeed

pytestmark = pytest.mark.slow

SHORT, MIDDLE = "a red circle", "a picture of two blue squares next to a cross"
LONG = "two small red circles to the left of one large blue triangle, " * 4
PROMPTS = [SHORT, LONG, MIDDLE, SHORT, MIDDLE]


@pytest.fixture
def predict(tmp_path):
    """Run in bfloat16 with the small Janus."""

    def run(prompts, output, *more, images=3, batch=4, ranks=1):
        (tmp_path / f"{output}.json").write_text(json.dumps(prompts))
        args = [
            "predict", "--trainer.accelerator=cpu", "--trainer.precision=bf16-true",
            f"--model.model_path={ROOT / 'checkpoints/shapes-janus'}",
            f"--model.parallel_size={images}", f"--model.images_per_batch={batch}",
            f"--data.prompt_json={tmp_path / f'{output}.json'}", "--writer.gallery=false",
            f"--writer.output_dir={tmp_path / output}", "--writer.save_tokens=true", *more,
        ]  # fmt: skip
        if ranks == 1:
            succeed(forked.run(tmp_path, [*args, "--trainer.devices=1"]))
        else:
            for done in forked.run_ranks(tmp_path, ranks, [*args, *ddp(ranks)]):
                succeed(done)
        return images_of(tmp_path / output)

    return run


def images_of(folder):
    """The tokens and the bytes of each image, by prompt and image index."""
    found = {}
    for record in records(folder):
        path = folder / record["file"]
        tokens = np.load(path.with_suffix(".npy")).tolist()
        found[record["prompt_index"], record["image_index"]] = tokens, path.read_bytes()
    return found


@pytest.fixture(scope="module")
def alone():
    return {}


@pytest.fixture
def expected(alone, predict):
    """Each image as a run makes it that makes nothing else in its batches."""
    if not alone:
        alone.update(predict(PROMPTS, "alone", batch=1))
    return alone


@pytest.mark.parametrize("batch", [2, 4, 5, 15])
def test_any_batch(batch, predict, expected):
    assert predict(PROMPTS, "out", batch=batch) == expected


@pytest.mark.parametrize("others", [SHORT, MIDDLE, LONG])
def test_any_neighbours(others, predict, expected):
    """Only the prompt at index 2 stays."""
    made = predict([others, others, MIDDLE, others], "out", batch=12)
    assert {image: made[2, image] for image in range(3)} == {
        image: expected[2, image] for image in range(3)
    }


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks(ranks, predict, expected):
    assert predict(PROMPTS, "out", ranks=ranks) == expected


def test_images_and_prompts_that_are_added_later(predict, expected):
    predict(PROMPTS[:2], "out", images=1)
    predict(PROMPTS[:4], "out", images=2)
    assert predict(PROMPTS, "out") == expected


def test_it_is_bfloat16_that_is_tested(predict, expected):
    """In float32 some tokens differ."""
    full = predict(PROMPTS, "out", "--trainer.precision=32-true")
    assert [tokens for tokens, _ in full.values()] != [tokens for tokens, _ in expected.values()]
