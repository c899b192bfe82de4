"""What the playground does, without its page."""

import os
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lit_dola import JanusPipeline
from lit_dola.apps.caller_queue import Stopped
from lit_dola.apps.limits import Limits
from lit_dola.apps.studio import Drawing, Studio, Wish
from lit_dola.errors import UserError
from lit_dola.reports.compare import compare
from tests.support.commands import files, records

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return JanusPipeline.from_pretrained(str(tiny_checkpoint))


@pytest.fixture
def studio(pipeline, tmp_path):
    studio = Studio(pipeline, {"cfg_weight": 3.0}, Limits(4, 50, 2), tmp_path / "saved")
    yield studio
    studio.close()


def finished(studio, number=0, prompt="a red apple", images=2, seed=5, **settings):
    *_, drawing = studio.draw(Wish(prompt, images, seed, settings), number)
    assert isinstance(drawing, Drawing)
    return drawing


@pytest.mark.slow
def test_both_come_from_the_same_noise_with_the_settings_asked_for(studio, pipeline):
    drawing = finished(studio, strength=0.5, layer=1)
    for dola, run in ((False, drawing.without), (True, drawing.with_dola)):
        alone = pipeline(
            "a red apple", parallel_size=2, seed=5, dola=dola, cfg_weight=3.0, strength=0.5,
            layer=1, progress=False,
        )  # fmt: skip
        assert torch.equal(run.made.tokens, alone.tokens)
        assert [file.read_bytes() for file in run.files] == [alone.encode(i) for i in range(2)]


@pytest.mark.slow
def test_previews_come_before_the_drawing(studio):
    *steps, drawing = studio.draw(Wish("a red apple", 2, 0, {}), 0)
    steps = [step for step in steps if not isinstance(step, float)]
    counts = [(len(without), len(with_dola)) for without, with_dola in steps]
    assert counts == sorted(counts)
    assert counts[0] == (2, 0)
    assert counts[-1] == (2, 2)
    assert counts.count((2, 0)) > 5
    changes = [one[0][0].tobytes() != other[0][0].tobytes() for one, other in pairwise(steps)]
    assert sum(changes) >= 3  # an image has 4 rows
    assert steps[-1][1] == drawing.with_dola.made.images


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish(" ", 1, 0, {}), "^prompt is empty; expected a text$"),
        (Wish("a" * 51, 1, 0, {}), "^prompt: 51 characters; expected at most 50$"),
        (Wish("a", 5, 0, {}), "^images: 5; expected an integer, 1 to 4$"),
        (Wish("a", 0, 0, {}), "^images: 0; expected an integer, 1 to 4$"),
        (Wish("a", 1, -1, {}), "^seed: -1; expected"),
        (Wish("a", 1, 0, {"alpha": 2}), "^alpha: 2; expected"),
        (Wish("a", 1, 0, {"layer": 99}), "^layer: 99 is not a middle layer"),
    ],
)
def test_what_is_asked_for_has_limits(studio, wish, message):
    with pytest.raises(UserError, match=message):
        [*studio.draw(wish, 0)]


@pytest.mark.slow
def test_a_drawing_follows_on_refused_ones(studio):
    for settings in ({"alpha": 2}, {"layer": 99}):
        with pytest.raises(UserError):
            [*studio.draw(Wish("a", 1, 0, settings), 0)]
    assert finished(studio, prompt="a").wish.prompt == "a"


class Endless:
    """A model that draws until it is stopped."""

    def __init__(self):
        self.stopped = threading.Event()

    def generate(self, prompt, callback_on_step, **settings):
        request, image = SimpleNamespace(image_index=0), Image.new("RGB", (4, 4))
        step = SimpleNamespace(index=1, count=9, requests=[request], preview=lambda: [image])
        try:
            while True:
                callback_on_step(step)
                time.sleep(0.01)
        finally:
            self.stopped.set()


def test_a_drawing_that_is_closed_stops(tmp_path):
    model = Endless()
    studio = Studio(model, {}, Limits(4, 50, 1), tmp_path)
    drawing = studio.draw(Wish("a red apple", 1, 0, {}), 0)
    next(drawing)
    with pytest.raises(UserError, match="queue full, 1 drawings"):
        next(studio.draw(Wish("a red apple", 1, 0, {}), 0))
    drawing.close()
    assert model.stopped.wait(10)
    other = studio.draw(Wish("a red apple", 1, 0, {}), 0)
    next(other)
    other.close()
    studio.close()


def test_a_drawing_that_its_caller_stops_ends(tmp_path):
    model = Endless()
    studio = Studio(model, {}, Limits(4, 50, 2), tmp_path)
    mine = studio.draw(Wish("a red apple", 1, 0, {}), 0, "me")
    next(mine)
    studio.stop("you")
    next(mine)
    studio.stop("me")
    with pytest.raises(Stopped):
        list(mine)
    assert model.stopped.wait(10)
    studio.close()


def test_a_studio_that_is_closed_does_not_wait_for_drawings(tmp_path):
    model = Endless()
    studio = Studio(model, {}, Limits(4, 50, 2), tmp_path)
    next(studio.draw(Wish("a red apple", 1, 0, {}), 0))
    drawing = studio.draw(Wish("a red apple", 1, 0, {}), 0)
    next(drawing)
    studio.close()
    assert model.stopped.is_set()
    assert not studio.drawn.exists()


def test_who_waits_is_told_how_many_come_first(tmp_path):
    studio = Studio(Endless(), {}, Limits(4, 50, 3), tmp_path)
    first, *others = (studio.draw(Wish("a red apple", 1, 0, {}), 0) for _ in range(3))
    next(first)
    assert [*map(next, others)] == [1, 2]
    first.close()
    assert isinstance(next(others[0]), float | tuple)
    assert next(others[1]) == 1
    for each in others:
        each.close()
    studio.close()


class InBatches:
    """A model that draws three images, two at a time, in four steps."""

    def __init__(self, going_on):
        self.going_on = going_on

    def generate(self, prompt, callback_on_step, **settings):
        for batch in ([0, 1], [2]):
            requests = [SimpleNamespace(image_index=image) for image in batch]
            for index in range(1, 5):
                shown = [Image.new("RGB", (2, 2), (index, index, index))] * len(batch)
                step = SimpleNamespace(
                    index=index, count=4, requests=requests, preview=partial(list, shown)
                )
                callback_on_step(step)
                self.going_on()
        raise UserError("enough")


def test_previews_of_later_batches_leave_the_earlier_images(tmp_path):
    studio = Studio(InBatches(lambda: None), {}, Limits(4, 50, 3), tmp_path)
    steps = []
    with pytest.raises(UserError, match="enough"):
        steps.extend(studio.draw(Wish("a", 3, 0, {}), 0))
    previews = [step[0] for step in steps if not isinstance(step, float)]
    shades = [[image.getpixel((0, 0))[0] for image in shown] for shown in previews]
    assert shades == [[k, k, 128] for k in (1, 2, 3)] + [[3, 3, k] for k in (1, 2, 3)]
    studio.close()


@pytest.mark.slow
def test_the_share_that_is_done_grows(tmp_path):
    studio = Studio(InBatches(lambda: time.sleep(0.25)), {}, Limits(4, 50, 3), tmp_path)
    steps = []
    with pytest.raises(UserError, match="enough"):
        steps.extend(studio.draw(Wish("a", 3, 0, {}), 0))
    shares = [step for step in steps if isinstance(step, float)]
    assert shares == sorted(shares)
    assert {round(24 * share) for share in shares} <= {0, 2, 4, 6, 8, 9, 10, 11, 12}
    assert all(24 * share == pytest.approx(round(24 * share)) for share in shares)
    studio.close()


@pytest.mark.slow
def test_files_of_what_nobody_sees_any_more_are_deleted(studio):
    kept, forgotten = finished(studio), finished(studio)
    studio.forget([forgotten])
    assert not any(run.folder.exists() for run in (forgotten.without, forgotten.with_dola))
    assert all(file.exists() for run in (kept.without, kept.with_dola) for file in run.files)


@pytest.mark.slow
def test_maps_have_the_size_of_the_image_and_say_what_they_show(studio):
    drawing = finished(studio, alpha=0.1)
    shown = {}
    for name in ("changed", "divergence", "head_size", "entropy_before", "entropy_after"):
        image, told = drawing.map(1, name)
        assert image.size == drawing.with_dola.made.images[1].size
        shown[name] = image.tobytes(), told
    assert len({*shown.values()}) == 5
    inspection = drawing.with_dola.made.inspections[1]
    low, high = float(inspection.divergence.min()), float(inspection.divergence.max())
    assert f"{low:.3g} (dark) to {high:.3g} (bright)" in shown["divergence"][1]
    changed = (inspection.token != inspection.baseline_token).float().mean()
    assert shown["changed"][1].endswith(f"{100 * changed:.0f} %")


@pytest.mark.slow
def test_a_saved_history_is_runs_and_pages(studio, tmp_path):
    history = [
        finished(studio, 0, images=1, strength=0.2), finished(studio, 1, images=1, strength=0.9),
        finished(studio, 2, prompt="a dog", images=1, cfg_weight=2.0),
    ]  # fmt: skip
    pages = studio.save(history)
    folder = tmp_path / "saved/history-000"
    assert [page.relative_to(folder).as_posix() for page in pages] == [
        "00_a_red_apple/compare/index.html", "01_a_dog/compare/index.html",
    ]  # fmt: skip
    runs = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*-*"))
    assert runs == [
        "00_a_red_apple/0-with", "00_a_red_apple/0-without", "00_a_red_apple/1-with",
        "01_a_dog/2-with", "01_a_dog/2-without",
    ]  # fmt: skip
    run = folder / "00_a_red_apple/1-with"
    assert [record["strength"] for record in records(run)] == [0.9]
    written = files(run)
    made = history[1].with_dola.made
    assert len([name for name in written if name.endswith(".inspect.npz")]) == 1
    assert "index.html" in written
    assert made.images[0].tobytes() == _first(run).tobytes()
    assert compare([str(run), str(folder / "00_a_red_apple/0-without")], str(tmp_path / "c")) == []
    assert studio.save(history[:1])[0].parents[2].name == "history-001"


def _first(run):
    with Image.open(run / records(run)[0]["file_name"]) as image:
        return image.convert("RGB")


def test_what_a_killed_playground_left_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    for name in (f"{killed.pid}-abc", f"{os.getpid()}-abc", "abc"):
        (tmp_path / f"lit-dola-play-{name}/000000").mkdir(parents=True)
    studio = Studio(None, {}, Limits(4, 50, 2), tmp_path / "saved")
    names = {path.name for path in tmp_path.glob("lit-dola-play-*")} - {studio.drawn.name}
    assert names == {f"lit-dola-play-{os.getpid()}-abc", "lit-dola-play-abc"}
    studio.close()


@pytest.mark.slow
def test_nothing_to_save_and_nowhere_to(pipeline, studio, tmp_path):
    with pytest.raises(UserError, match=r"^history: empty; expected at least one drawing$"):
        studio.save([])
    (tmp_path / "file").write_text("")
    elsewhere = Studio(pipeline, {}, Limits(4, 50, 2), tmp_path / "file")
    drawing = finished(elsewhere)
    with pytest.raises(UserError, match=r"^output_dir: cannot write to .*file"):
        elsewhere.save([drawing])
    elsewhere.close()
