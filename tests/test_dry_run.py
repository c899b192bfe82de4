"""``--dry_run true``: what it says, and that it changes and loads nothing."""

import json

import pytest

from lit_dola.cli.dry_run import _bytes
from tests.support.commands import files, messages, succeed

MODEL = ["--trainer.accelerator=gpu", "--model.parallel_size=4"]  # there is no GPU


@pytest.fixture
def dry(main_here, tiny_checkpoint, tmp_path):
    (tmp_path / "prompt.json").write_text(json.dumps([f"cat {i}" for i in range(25)]))

    def run(*args, subcommand="predict"):
        model = f"--model.model_path={tiny_checkpoint}"
        done = succeed(main_here(tmp_path, subcommand, *MODEL, model, "--dry_run=true", *args))
        assert done.stderr == ""
        return done.stdout.splitlines()

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--trainer.devices=1", "--model.images_per_batch=8"],
         "1 rank: at most 100 each, in 13 batches of at most 8"),
        (["--trainer.devices=8", "--trainer.num_nodes=8", "--model.images_per_batch=16"],
         "64 ranks: at most 2 each, in 1 batch of at most 16"),
        (["--trainer.devices=[0,2]"],
         "2 ranks: at most 50 each, in batches as large as the memory allows"),
        (["--trainer.devices=4", "--trainer.num_nodes=2"],
         "8 ranks: at most 13 each, in batches as large as the memory allows"),
        (["--trainer.devices=auto", "--model.images_per_batch=8"],
         "a rank per device, in batches of at most 8"),
        (["--trainer.devices=-1"], "a rank per device, in batches as large as the memory allows"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_ranks_and_batches(dry, flags, expected):
    first, second, third = dry(*flags)
    assert first == "100 images to generate, 0 existing, in outputs"
    assert second == expected
    assert third.startswith("about ")


@pytest.mark.slow
def test_what_is_there_counts_and_nothing_changes(dry, main_here, tiny_checkpoint, tmp_path):
    (tmp_path / "prompt.json").write_text('["a", "b"]')
    args = [f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=4"]
    done = main_here(tmp_path, "predict", *args, "--trainer.accelerator=cpu", "--trainer.devices=1")
    assert messages(succeed(done).stderr) == ""
    (gone, *_) = sorted((tmp_path / "outputs").glob("*/*.jpg"))
    gone.unlink()
    before = files(tmp_path / "outputs")
    (tmp_path / "prompt.json").write_text('["a", "b", "c"]')
    assert dry()[0] == "5 images to generate, 7 existing, in outputs"
    assert files(tmp_path / "outputs") == before
    assert not (tmp_path / "other").exists()
    (tmp_path / "prompt.json").write_text('["a", "other"]')
    lines = dry()
    assert lines[0].startswith("5 images to generate, 3 existing")
    assert lines[1] == "4 of another run exist, too: see writer.on_mismatch"
    (tmp_path / "prompt.json").write_text('["a", "b", "c"]')
    assert dry("--writer.output_dir=other")[0].startswith("12 images to generate, 0 existing")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_entries_that_are_skipped_are_told(dry, tmp_path):
    (tmp_path / "prompt.json").write_text('["a", 3, "b"]')
    assert dry("--data.on_error=skip")[0] == (
        "8 images to generate, 0 existing, 1 entry skipped, in outputs"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (48e9, "48 GB"), (2e15, "2e+03 TB")],
)
def test_bytes(count, text):
    assert _bytes(count) == text
