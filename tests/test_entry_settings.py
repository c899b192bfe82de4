"""Seeds and negative prompts of single entries, and a negative prompt of all."""

import json

import pytest

from lit_dola import JanusPipeline
from tests.support import forked
from tests.support.commands import CPU, files, messages

ENTRIES = [
    {"prompt": "a red apple", "seed": 7},
    {"prompt": "two blue birds on a branch", "negative_prompt": "blurry, dark"},
    {"prompt": "a red apple"},
]


@pytest.fixture
def predict(tmp_path, tiny_checkpoint):
    """Run ``predict`` on entries; returns what it said, and its records by prompt and image."""

    def run(*args, entries=ENTRIES, out="out", code=0):
        (tmp_path / "prompt.json").write_text(json.dumps(entries))
        done = forked.run(
            tmp_path,
            ["predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2",
             "--writer.save_tokens=true", "--writer.format=png", f"--writer.output_dir={out}",
             *args],
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        lines = (tmp_path / out / "metadata.jsonl").read_text().splitlines()
        return done.stderr, [json.loads(line) for line in lines]

    return run


def images(folder):
    """Content of the images by their path."""
    return {name: found for name, found in files(folder).items() if name.endswith(".npy")}


@pytest.mark.slow
def test_an_entry_s_own_settings(predict, tiny_checkpoint, tmp_path):
    """Each image is the one of a whole run with these settings, and its record says them."""
    said, records = predict("--data.use_entry_settings=true")
    assert messages(said) == ""
    assert [record["seed"] for record in records] == [7, 7, 0, 0, 0, 0]
    negative = [record["negative_prompt"] for record in records]
    assert negative == [None, None, "blurry, dark", "blurry, dark", None, None]
    predict("--model.seed=7", out="seed")
    predict("--model.negative_prompt=blurry, dark", out="negative")
    predict(out="plain")
    own = images(tmp_path / "out")
    for prompt, run in enumerate(["seed", "negative", "plain"]):
        for name, content in images(tmp_path / run).items():
            if name.startswith(f"{prompt:05}"):
                assert own[name] == content
    assert own != images(tmp_path / "plain")
    pipeline = JanusPipeline.from_pretrained(str(tiny_checkpoint))
    prompts = [entry["prompt"] for entry in ENTRIES]
    made = pipeline(prompts, parallel_size=2, negative_prompt="blurry, dark", progress=False)
    negative = [content for _, content in sorted(images(tmp_path / "negative").items())]
    assert [tokens.numpy().tobytes() for tokens in made.tokens] == [
        content[-64:] for content in negative
    ]


@pytest.mark.slow
def test_a_run_continues_only_with_the_same_settings_of_entries(predict, tmp_path):
    predict("--data.use_entry_settings=true")
    before = files(tmp_path / "out")
    (gone, *_) = sorted((tmp_path / "out").glob("00001*/*.png"))
    gone.unlink()
    said, _ = predict("--data.use_entry_settings=true")
    assert "1 image to generate, 5 already exist" in said
    assert files(tmp_path / "out") == before
    for changed, message in [
        ([{**ENTRIES[0], "seed": 8}, *ENTRIES[1:]], "seed was 7, is 8"),
        ([ENTRIES[0], {"prompt": ENTRIES[1]["prompt"]}, ENTRIES[2]],
         'negative_prompt was "blurry, dark", is null'),
        ([*ENTRIES[:2], {**ENTRIES[2], "negative_prompt": "x"}],
         'negative_prompt was null, is "x"'),
    ]:  # fmt: skip
        said, _ = predict("--data.use_entry_settings=true", entries=changed, code=1)
        assert message in said
    said, _ = predict(code=1)
    assert "seed was 7, is 0" in said
    assert files(tmp_path / "out") == before


@pytest.mark.slow
def test_settings_that_are_not_used_are_told_once(predict):
    said, records = predict()
    assert messages(said) == (
        "WARNING: prompt.json: entries have negative_prompt and seed, kept as metadata only;"
        " data.use_entry_settings true uses them\n"
    )
    assert [record["metadata"] for record in records[::2]] == [
        {"seed": 7}, {"negative_prompt": "blurry, dark"}, {}
    ]  # fmt: skip
    assert {record["seed"] for record in records} == {0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"seed": -1}, "prompt.json: entry 1: seed is -1; expected an integer, 0 <= seed <= "),
        ({"negative_prompt": " "}, "prompt.json: entry 1: negative_prompt is empty; expected a te"),
        ({"negative_prompt": "x " * 2000}, "prompt.json: entry 1: negative_prompt has "),
    ],
)
def test_settings_that_cannot_be(entry, message, main_here, tiny_checkpoint, tmp_path):
    (tmp_path / "prompt.json").write_text(json.dumps(["a", {"prompt": "b", **entry}, "c"]))
    args = ["predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=1"]
    done = main_here(tmp_path, *args, "--data.use_entry_settings=true")
    assert done.returncode == 1
    assert message in done.stderr
    done = main_here(tmp_path, *args, "--data.use_entry_settings=true", "--data.on_error=skip")
    assert done.returncode == 3
    assert len(list(tmp_path.glob("outputs/*/*.jpg"))) == 2


def test_an_empty_negative_prompt_of_all(main_here, tiny_checkpoint, tmp_path):
    (tmp_path / "prompt.json").write_text('["a"]')
    args = ["predict", *CPU, f"--model.model_path={tiny_checkpoint}"]
    done = main_here(tmp_path, *args, "--model.negative_prompt=")
    assert (done.returncode, done.stderr) == (
        1, "error: model.negative_prompt: negative_prompt is empty; expected a text\n"
    )  # fmt: skip
