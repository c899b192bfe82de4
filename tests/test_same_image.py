"""In bfloat16, too, an image does not depend on its company: neighbours, batch, ranks, resuming."""

import json
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import JanusForConditionalGeneration

from lit_dola.janus import packing
from recipes.small_janus import VQ_CONFIG, enliven, make_config, make_tokenizer, save_janus
from tests.support import forked
from tests.support.commands import CPU, ROOT, ddp, files, one_line, records, succeed

pytestmark = pytest.mark.slow

SHORT, MIDDLE = "a red circle", "a picture of two blue squares next to a cross"
LONG = "two small red circles to the left of one large blue triangle, " * 4
PROMPTS = [SHORT, LONG, MIDDLE, SHORT, MIDDLE]


@pytest.fixture
def predict(tmp_path):
    """Run in bfloat16 with the small Janus."""

    def run(prompts, output, *more, images=2, batch=4, ranks=1, breaking=None):
        (tmp_path / f"{output}.json").write_text(json.dumps(prompts))
        args = [
            "predict", "--trainer.accelerator=cpu", "--trainer.precision=bf16-true",
            f"--model.model_path={ROOT / 'checkpoints/shapes-janus'}",
            f"--model.parallel_size={images}", f"--model.images_per_batch={batch}",
            f"--data.prompt_json={tmp_path / f'{output}.json'}", "--writer.gallery=false",
            f"--writer.output_dir={tmp_path / output}", "--writer.save_tokens=true", *more,
        ]  # fmt: skip
        if ranks == 1:
            succeed(forked.run(tmp_path, [*args, "--trainer.devices=1"], breaking))
        else:
            for done in forked.run_ranks(tmp_path, ranks, [*args, *ddp(ranks)], breaking=breaking):
                succeed(done)
        return images_of(tmp_path / output)

    return run


@pytest.fixture
def resume(tmp_path, tiny_checkpoint):
    """Run a second time with more images; returns what the command printed, and the records."""

    def run(first, then, precision="bf16-true"):
        (tmp_path / "prompt.json").write_text(json.dumps(PROMPTS))
        for images, settings in (1, first), (2, then):
            done = forked.run(
                tmp_path,
                ["predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.compile=auto",
                 f"--model.parallel_size={images}", f"--trainer.precision={precision}", *settings],
            )  # fmt: skip
        return done, records(tmp_path / "outputs")

    return run


def images_of(folder):
    """The tokens and the pixels of each image, by prompt and image index."""
    found = {}
    for record in records(folder):
        path = folder / record["file_name"]
        tokens = np.load(path.with_suffix(".npy")).tolist()
        pixels = Image.open(path).tobytes()
        found[record["prompt_index"], record["image_index"]] = tokens, pixels
    return found


def image_files(folder):
    return {name: content for name, content in files(folder).items() if name.endswith(".jpg")}


@pytest.fixture(scope="module")
def alone():
    return {}


@pytest.fixture
def expected(alone, predict):
    """Each image as a run makes it that makes nothing else in its batches."""
    if not alone:
        alone.update(predict(PROMPTS, "alone", batch=1))
    return alone


@pytest.fixture(scope="module")
def in_fours():
    return {}


@pytest.fixture
def expected_files(in_fours, predict, expected, tmp_path):
    """The files of an undisturbed run in batches of four, which they mention."""
    if not in_fours:
        assert predict(PROMPTS, "one") == expected
        in_fours.update(image_files(tmp_path / "one"))
    return in_fours


@pytest.mark.parametrize("batch", [4, 10])
def test_any_batch(batch, predict, expected):
    assert predict(PROMPTS, "out", batch=batch) == expected


@pytest.mark.parametrize("others", [SHORT, MIDDLE, LONG])
def test_any_neighbours(others, predict, expected):
    """Only the prompt at index 2 stays."""
    made = predict([others, others, MIDDLE, others], "out", batch=8)
    assert {image: made[2, image] for image in range(2)} == {
        image: expected[2, image] for image in range(2)
    }


def pack_all():
    packing.SMALLEST = 0


def test_with_packed_weights(predict):
    """As the layers of larger models are."""
    alone = predict(PROMPTS, "alone", batch=1, breaking=pack_all)
    assert predict(PROMPTS, "out", batch=10, breaking=pack_all) == alone


@pytest.mark.parametrize("speculative", [2, 16])
def test_speculative(speculative, predict):
    """One window is one arithmetic, whoever finishes first."""
    window = f"--model.speculative={speculative}"
    alone = predict(PROMPTS, "alone", window, batch=1)
    assert predict(PROMPTS, "out", window, batch=10) == alone


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("precision", ["bf16-true", "32-true"])
def test_refilled_rows(precision, ranks, predict, tmp_path):
    """Images of several prompts follow one another in three rows, also after some are missing."""
    settings = "--model.speculative=8", f"--trainer.precision={precision}"
    alone = predict(PROMPTS, "alone", *settings, batch=1, images=3)
    assert predict(PROMPTS, "out", *settings, batch=3, images=3, ranks=ranks) == alone
    for path in [*tmp_path.glob("out/*/img_0[12].jpg")][::3]:
        path.unlink()
    assert predict(PROMPTS, "out", *settings, batch=3, images=3, ranks=ranks) == alone


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory):
    """A random Janus with 16384 codes, as the published ones have."""
    folder = tmp_path_factory.mktemp("wide") / "janus"
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
    config = make_config(tokenizer, sizes, {**VQ_CONFIG, "num_embeddings": 16384}, 192)
    model = JanusForConditionalGeneration(config).eval()
    enliven(model)
    save_janus(model, tokenizer, folder)
    return folder


@pytest.mark.parametrize("precision", ["bf16-true", "32-true"])
def test_a_wide_model(precision, predict, wide_checkpoint):
    """Its layers are packed. In float32 an image may be in any batch, too."""
    args = f"--model.model_path={wide_checkpoint}", f"--trainer.precision={precision}"
    alone = predict([SHORT, LONG], "alone", *args, images=1, batch=1)
    assert {len(tokens) for tokens, _ in alone.values()} == {144}
    together = predict([SHORT, LONG, MIDDLE], "out", *args, images=1, batch=3)
    assert {image: together[image] for image in alone} == alone


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_down_to_the_bytes(ranks, predict, expected, expected_files, tmp_path):
    assert predict(PROMPTS, "out", ranks=ranks) == expected
    assert image_files(tmp_path / "out") == expected_files


def test_images_and_prompts_that_are_added_later(predict, expected, expected_files, tmp_path):
    """As if the run had stopped at two places, too."""
    predict(PROMPTS[:2], "out", images=1)
    predict(PROMPTS[:4], "out", images=1)
    assert predict(PROMPTS, "out") == expected
    assert image_files(tmp_path / "out") == expected_files


BATCHING = {"images_per_batch": 3, "compile": False, "prefill_bucket": 16}


def batching(record):
    return {name: record.get(name) for name in BATCHING}


@pytest.mark.parametrize("then", [[], ["--model.images_per_batch=3", "--model.compile=false"]])
def test_a_resumed_run_batches_as_the_first_one_did(then, resume):
    """5 images were left to make, and auto would be that."""
    done, lines = resume(["--model.images_per_batch=3"], then)
    succeed(done)
    assert [batching(line) for line in lines] == [BATCHING] * 10


def test_auto_is_what_it_amounted_to(resume):
    _, lines = resume([], [])
    assert [batching(line) for line in lines] == [{**BATCHING, "images_per_batch": 5}] * 10


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("images_per_batch=4", "images_per_batch was 3, is 4"),
        ("compile=true", "compile was false, is true"),
        ("speculative=8", "speculative was null, is 8"),
    ],
)
def test_another_batching_is_another_run(setting, message, resume):
    done, lines = resume(["--model.images_per_batch=3"], [f"--model.{setting}"])
    one_line(done, 1, message)
    assert len(lines) == 5  # all that there was


@pytest.mark.parametrize("setting", ["images_per_batch=4", "speculative=8"])
def test_in_float32_it_does_not_matter(setting, resume):
    done, lines = resume(["--model.images_per_batch=3"], [f"--model.{setting}"], "32-true")
    succeed(done)
    assert {*BATCHING, "speculative"}.isdisjoint(chain(*lines))
    assert len(lines) == 10


@pytest.mark.parametrize("nonsense", [0, True, "many", [3]])
def test_a_record_that_says_nonsense_is_not_followed(nonsense, resume, tmp_path):
    resume(["--model.images_per_batch=3"], [])
    log = tmp_path / "outputs/metadata.jsonl"
    lines = [{**line, "images_per_batch": nonsense} for line in records(log.parent)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines[:6]))
    done, lines = resume([], [])
    succeed(done)
    assert [line["images_per_batch"] for line in lines] == [nonsense] * 6 + [2] * 4


def test_it_is_bfloat16_that_is_tested(predict, expected):
    """In float32 some tokens differ."""
    full = predict(PROMPTS, "out", "--trainer.precision=32-true")
    assert [tokens for tokens, _ in full.values()] != [tokens for tokens, _ in expected.values()]
