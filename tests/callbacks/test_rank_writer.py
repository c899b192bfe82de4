"""Rankings on the disk: resume, mismatches, failures."""

import json

import pytest
from PIL import Image

from lit_dola.tasks.rank import LitRank
from tests.support.commands import messages
from tests.support.siglips import LABELS, make_siglip, write_items

ITEMS = [(image, LABELS[start:]) for image in ("a.png", "b.png", "c.jpg") for start in (0, 1)]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip") / "model"
    make_siglip(folder)
    return folder


@pytest.fixture
def rank(main_here, tmp_path, siglip):
    def run(*args, items=ITEMS, **more):
        write_items(tmp_path, items, **more)
        return main_here(
            tmp_path, "rank", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
            f"--model.model_path={siglip}", "--data.item_json=items.jsonl",
            "--data.items_per_batch=2", "--writer.output_dir=out", *args,
        )  # fmt: skip

    return run


@pytest.fixture
def ranked(monkeypatch):
    """Indices of the items that the model was given."""
    indices = []
    step = LitRank.predict_step

    def noted(self, batch, batch_idx):
        indices.extend(request.key.entry_index for request in batch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LitRank, "predict_step", noted)
    return indices


def lines(folder):
    return [json.loads(line) for line in (folder / "ranks.jsonl").open()]


@pytest.mark.slow
def test_a_second_run_ranks_what_is_missing(rank, ranked, tmp_path):
    assert rank("--trainer.limit_predict_batches=1").returncode == 1
    assert ranked == [0, 1]
    assert rank().returncode == 0
    assert ranked == [*range(6)]
    whole = lines(tmp_path / "out")
    assert [line["item_index"] for line in whole] == [*range(6)]
    assert rank().returncode == 0
    assert ranked == [*range(6)]
    assert lines(tmp_path / "out") == whole
    assert rank(split="test").returncode == 0  # what else an entry holds is updated
    assert ranked == [*range(6)]
    assert {line["split"] for line in lines(tmp_path / "out")} == {"test"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "items", "told"),
    [
        (["--model.alpha=0.3"], ITEMS, "alpha was 0.1, is 0.3"),
        (["--model.layer=1"], ITEMS, "layer was 3, is 1"),
        ([], [("a.png", ["other"]), *ITEMS[1:]], "item 0 was "),
    ],
)
def test_rankings_of_another_run_are_not_mixed(rank, tmp_path, args, items, told):
    rank()
    before = lines(tmp_path / "out")
    done = rank(*args, items=items)
    assert done.returncode == 1
    assert "out holds results of another run: " in done.stderr
    assert told in done.stderr
    assert lines(tmp_path / "out") == before
    assert rank(*args, "--writer.on_mismatch=overwrite", items=items).returncode == 0
    assert lines(tmp_path / "out") != before


@pytest.mark.slow
def test_a_broken_picture_stops_or_is_skipped(rank, tmp_path):
    rank("--writer.output_dir=first", items=ITEMS[:1])  # writes the pictures
    Image.effect_noise((300, 300), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    items = [*ITEMS[:2], ("cut.png", LABELS), ITEMS[3]]
    done = rank(items=items)
    assert done.returncode == 1
    assert "items.jsonl: entry 2: cut.png: a broken image: " in done.stderr
    done = rank("--data.on_error=skip", items=items)
    assert done.returncode == 3
    assert [line["item_index"] for line in lines(tmp_path / "out")] == [0, 1, 3]


def test_a_layer_that_the_vision_tower_does_not_have(rank):
    done = rank("--model.layer=4")
    assert done.returncode == 1
    assert "model.layer: 4 is not a middle layer" in done.stderr
    assert "expected 1 to 3, its final layer is 4" in done.stderr


def test_a_janus_is_no_siglip(rank, tiny_checkpoint):
    done = rank(f"--model.model_path={tiny_checkpoint}")
    assert done.returncode == 1
    assert "model_type is 'janus'; expected 'siglip' or 'siglip2'" in done.stderr
    assert messages(done.stderr).count("\n") == 1


LONG = "a very long label of many many words that goes on and on and "


def test_labels_that_differ_behind_the_text_tower_are_noted(rank):
    labels = [LONG + "red", LONG + "blue"]
    done = rank(items=[("a.png", labels), ("b.png", labels)])
    assert done.returncode == 0
    notes = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(notes) == 1
    assert "a very long label" in notes[0]
    assert "tokens; the text tower reads 12" in notes[0]
    assert "WARNING" not in rank("--writer.output_dir=other").stderr


@pytest.mark.slow
def test_images_that_were_generated_again_are_ranked_again(
    main_here, tmp_path, siglip, tiny_checkpoint
):
    cpu = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")

    def predict(*args):
        return main_here(
            tmp_path, "predict", *cpu, f"--model.model_path={tiny_checkpoint}",
            "--data.prompts=a cat", "--model.parallel_size=2", "--writer.output_dir=run", *args,
        )  # fmt: skip

    def rank(*args):
        return main_here(
            tmp_path, "rank", *cpu, f"--model.model_path={siglip}", "--data.run=run",
            "--writer.output_dir=out", *args,
        )  # fmt: skip

    assert predict().returncode == 0
    assert rank().returncode == 0
    assert rank().returncode == 0
    best = tmp_path / "run/best.json"
    assert best.exists()
    assert predict("--model.seed=5", "--writer.on_mismatch=overwrite").returncode == 0
    assert not best.exists()
    assert "ranked" not in (tmp_path / "run/index.html").read_text().split("<main")[-1]
    done = rank()
    assert done.returncode == 1
    assert "item 0: img_00.jpg was another picture" in done.stderr
    before = lines(tmp_path / "out")
    assert rank("--writer.on_mismatch=overwrite").returncode == 0
    assert lines(tmp_path / "out")[0]["scores"] != before[0]["scores"]
    assert best.exists()
