"""The output folder: formats, the record of each image, and the additions of another run."""

import errno
import json
import os
import re
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from lit_dola import ImageWriter
from lit_dola.data.plan import RunPlan
from lit_dola.data.prompts import PromptDataModule
from lit_dola.data.requests import Entry, Failure, ImageRequest
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.runs import image_file, open_run
from lit_dola.runs.files import write_atomically
from lit_dola.tasks.generate import GeneratedImage, GeneratedImages, LitDoLa

PROMPT = 'A "red" apple / 猫 <b>&amp;</b> 🙂'


def request(text=PROMPT, index=3, image_index=1):
    return ImageRequest(Entry(index, text, {"tag": "x", "id": 9}), [0, 1], image_index)


def photo():
    """A smooth picture, 3 x 48 x 48, which a codec hardly changes at high quality."""
    x = torch.linspace(0, 1, 48)
    channels = [x.expand(48, 48), x[:, None].expand(48, 48), (1 - x).expand(48, 48)]
    return (torch.stack(channels) * 255).to(torch.uint8)


@pytest.fixture
def write(tiny_checkpoint):
    """Write images as a run does; returns the writer, which lists the images that were missing."""

    def run(folder, requests=None, end=True, failures=(), on_error="stop", model=None, **settings):
        image_writer = ImageWriter(str(folder), **settings)
        module = LitDoLa(model_path=str(tiny_checkpoint), **{"alpha": 0.25, **(model or {})})
        checkpoint = Checkpoint.open(str(tiny_checkpoint))
        encoder = PromptEncoder(checkpoint.folder)
        data = PromptDataModule("p.json", on_error=on_error)
        requests = requests or [request()]
        data.plan = RunPlan(data.prompt_json, on_error, checkpoint, requests, encoder)
        trainer = SimpleNamespace(
            global_rank=0,
            world_size=1,
            is_global_zero=True,
            precision="32-true",
            datamodule=data,
            strategy=SimpleNamespace(broadcast=lambda plan: plan, root_device=torch.device("cpu")),
        )
        image_writer.setup(trainer, module, "predict")
        missing = data.plan.requests
        tokens = torch.arange(16, dtype=torch.int32)
        images = GeneratedImages(
            [GeneratedImage(each, tokens, photo()) for each in missing], list(failures)
        )
        try:
            image_writer.write_on_batch_end(trainer, module, images, None, missing, 0, 0)
            if end:
                image_writer.on_predict_end(trainer, module)
        except UserError as error:
            image_writer.on_exception(trainer, module, error)
            raise
        if end:
            image_writer.teardown(trainer, module, "predict")
        image_writer.missing = [(r.entry.index, r.image_index) for r in missing]
        return image_writer

    return run


def records(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").open(encoding="utf-8")]


@pytest.mark.parametrize(
    ("format", "kind", "tolerance"), [("jpg", "JPEG", 6), ("png", "PNG", 0), ("webp", "WEBP", 10)]
)
def test_formats(write, tmp_path, format, kind, tolerance):
    write(tmp_path, format=format)
    path = tmp_path / "00003_A_red_apple_猫_b_&amp;_b_🙂" / f"img_01.{format}"
    with Image.open(path) as image:
        assert image.format == kind
        assert (image.mode, image.size) == ("RGB", (48, 48))
        pixels = np.asarray(image).astype(int)
    error = np.abs(pixels - photo().permute(1, 2, 0).numpy())
    assert error.max() <= tolerance


def test_quality_is_95_by_default(write, tmp_path):
    tables = {}
    for settings in ({}, {"quality": 95}, {"quality": 20}):
        folder = tmp_path / str(settings)
        write(folder, **settings)
        (file,) = folder.glob("*/*.jpg")
        with Image.open(file) as image:
            tables[str(settings)] = image.quantization
    default, high, low = tables.values()
    assert default == high
    assert sum(high[0]) * 4 < sum(low[0])


def test_metadata_says_what_made_each_image(write, tmp_path):
    write(tmp_path)
    (record,) = records(tmp_path)
    assert (tmp_path / record["file_name"]).is_file()
    assert record["prompt"] == PROMPT
    assert (record["prompt_index"], record["image_index"], record["seed"]) == (3, 1, 0)
    assert record["metadata"] == {"tag": "x", "id": 9}
    assert record["model_path"].startswith("/")
    shaping = {
        "dola": True, "alpha": 0.25, "layer_ratio": 0.8, "mid_norm": False, "apc": "cond",
        "cfg_weight": 5.0, "temperature": 1.0, "top_k": None, "top_p": None, "roles": "template",
        "backend": "transformers", "precision": "32-true", "format": "jpg", "quality": 95,
        "layer": 6,
    }  # fmt: skip
    assert {name: record[name] for name in shaping} == shaping
    assert {"lit_dola", "torch", "transformers", "lightning"} == record["versions"].keys()


def test_a_png_carries_its_record_as_text(write, tmp_path):
    write(tmp_path, format="png")
    (file,) = tmp_path.glob("*/*.png")
    with Image.open(file) as image:
        assert image.text["prompt"] == PROMPT
        assert json.loads(image.text["parameters"])["alpha"] == 0.25


@pytest.mark.parametrize("format", ["jpg", "webp"])
@pytest.mark.parametrize("text", [PROMPT, "long 猫 " * 20_000, "🙂" * 9000, "\x01" * 9000])
def test_a_jpeg_or_webp_carries_its_record_as_exif(write, tmp_path, format, text):
    write(tmp_path, [request(text)], format=format)
    (file,) = tmp_path.glob(f"*/*.{format}")
    with Image.open(file) as image:
        exif = image.getexif()
    description = exif[ExifTags.Base.ImageDescription].encode("latin-1").decode("utf-8")
    assert description == re.sub(r"[\x00-\x1f]", " ", text[:2000])
    comment = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.startswith(b"UNICODE\0")
    record = json.loads(comment[8:].decode("utf-16-be"))
    assert record["prompt"] == text[:2000]
    assert record["cfg_weight"] == 5.0
    assert records(tmp_path)[0]["prompt"] == text


def test_tokens_lie_beside_the_image(write, tmp_path):
    write(tmp_path, save_tokens=True)
    (file,) = tmp_path.glob("*/img_01.npy")
    tokens = np.load(file)
    assert (tokens.dtype, tokens.shape) == (np.int32, (16,))
    assert tokens.tolist() == list(range(16))


def test_without_save_tokens_there_are_none(write, tmp_path):
    write(tmp_path)
    assert not list(tmp_path.glob("*/*.npy"))


def log_of(folder):
    """The log of the first rank of a run that has not ended."""
    (path,) = folder.glob("metadata.0.*.jsonl")
    return path


THREE = [request("a", 0, 0), request("b", 1, 0), request("c", 2, 0)]


def files(folder):
    """Return the content of every file of a run but its lock, by name."""
    found = {
        path.name: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json"  # the time
    }
    found.pop(".run.lock", None)
    return found


def test_a_second_run_makes_what_is_missing(write, tmp_path):
    assert write(tmp_path, THREE[:2]).missing == [(0, 0), (1, 0)]
    assert write(tmp_path, THREE).missing == [(2, 0)]
    assert write(tmp_path, THREE).missing == []
    assert write(tmp_path, THREE[1:]).missing == []
    assert [record["prompt"] for record in records(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize("lost", ["image", "tokens", "line", "image is a link", "folder"])
def test_an_image_without_all_that_belongs_to_it_is_made_again(write, tmp_path, lost):
    write(tmp_path, THREE, save_tokens=True)
    whole = files(tmp_path)
    image = tmp_path / "00001_b/img_00.jpg"
    if lost == "image":
        image.unlink()
    elif lost == "tokens":
        image.with_suffix(".npy").unlink()
    elif lost == "line":
        lines = (tmp_path / "metadata.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "metadata.jsonl").write_text("".join([lines[0], lines[2]]))
    elif lost == "image is a link":
        image.rename(tmp_path / "elsewhere.jpg")
        image.symlink_to(tmp_path / "elsewhere.jpg")
    else:
        shutil.rmtree(image.parent)
    assert write(tmp_path, THREE, save_tokens=True).missing == [(1, 0)]
    (tmp_path / "elsewhere.jpg").unlink(missing_ok=True)
    assert files(tmp_path) == whole
    assert not image.is_symlink()


def test_tokens_that_are_asked_for_later_are_made(write, tmp_path):
    write(tmp_path, THREE)
    assert write(tmp_path, THREE, save_tokens=True).missing == [(0, 0), (1, 0), (2, 0)]
    assert write(tmp_path, THREE).missing == []


DIFFERENT = {
    "a setting": ({"model": {"alpha": 0.5, "seed": 7}}, "alpha was 0.25, is 0.5; seed was 0, is 7"),
    "the layer": ({"model": {"layer": 3}}, "layer was 6, is 3"),
    "the format": ({"format": "png"}, 'format was "jpg", is "png"'),
    "the quality": ({"quality": 80}, "quality was 95, is 80"),
    "a prompt": ({"requests": [request("x", 0, 0)]}, "prompt 0 was 'a', is 'x'"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_another_run_in_the_folder(write, tmp_path, case):
    settings, difference = DIFFERENT[case]
    settings = {"requests": THREE, **settings}
    here, there = tmp_path / "run", tmp_path / "run-2"
    write(here, THREE)
    before = files(here)
    with pytest.raises(UserError) as caught:
        write(here, **settings)
    assert f"run holds results of another run: {difference}" in str(caught.value)
    assert "writer.on_mismatch new_folder or overwrite" in str(caught.value)
    assert files(here) == before

    made = write(here, **settings, on_mismatch="new_folder")
    assert made.output_dir == there
    assert files(here) == before
    assert write(here, **settings, on_mismatch="new_folder").missing == []  # it continues there
    assert not (tmp_path / "run-3").exists()

    assert len(write(here, **settings, on_mismatch="overwrite").missing) == len(made.missing)
    own = re.compile(rb'<title>.*?</title>|<h1.*?</h1>|content="[0-9a-f]{16}-[0-9a-f-]+"')
    found, expected = (
        {name: own.sub(b"", data) for name, data in files(folder).items()}
        for folder in (here, there)
    )
    assert found == expected  # and nothing of the earlier run
    assert write(here, **settings).missing == []


def test_more_images_and_prompts_are_no_other_run(write, tmp_path):
    write(tmp_path, THREE)
    more = [*THREE, request("a", 0, 1), request("d", 3, 0)]
    assert write(tmp_path, more, model={"parallel_size": 2, "images_per_batch": 1}).missing == [
        (0, 1),
        (3, 0),
    ]


def test_failures_are_listed_and_the_last_run_s_only(write, tmp_path):
    failure = Failure(1, 0, "b", "entry 1: image 0: the model's logits are NaN")
    made = write(tmp_path, THREE[:1], failures=[failure], on_error="skip")
    assert made.outcome.num_failures == 1
    assert json.loads((tmp_path / "errors.jsonl").read_text()) == failure.to_line()
    assert write(tmp_path, THREE, on_error="skip").outcome.num_failures == 0
    assert not list(tmp_path.glob("errors*"))


def test_a_failure_ends_the_run_unless_it_is_to_be_skipped(write, tmp_path):
    """The other images of its batch are kept."""
    failure = Failure(1, 0, "b", "entry 1: image 0: the model's logits are NaN")
    with pytest.raises(UserError, match=r"p\.json: entry 1: image 0: the model's logits are NaN"):
        write(tmp_path, THREE[:1], failures=[failure])
    assert write(tmp_path, THREE).missing == [(1, 0), (2, 0)]


def test_a_full_disk_is_an_error_and_what_was_written_is_recorded(write, tmp_path, monkeypatch):
    def fail(path, content):
        if "00001" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomically(path, content)

    monkeypatch.setattr(image_file, "write_atomically", fail)
    images = [request(text, index, 0) for index, text in enumerate("abc")]
    with pytest.raises(UserError, match=r"cannot write to .*00001_b/img_00\.jpg: No space left"):
        write(tmp_path, images)
    monkeypatch.undo()
    assert write(tmp_path, images).missing == [(1, 0)]


def test_what_was_generated_is_written_when_something_else_ends_the_run(write, tmp_path):
    image_writer = write(tmp_path, [request(str(i), i, 0) for i in range(9)], end=False)
    image_writer.on_exception(None, None, RuntimeError("out of memory"))
    assert len(list(tmp_path.glob("*/*.jpg"))) == 9
    assert len(log_of(tmp_path).read_text().splitlines()) == 9


def test_images_are_written_off_the_main_thread(write, tmp_path, monkeypatch):
    threads = set()

    def note(path, content):
        threads.add(threading.current_thread().name)
        write_atomically(path, content)

    monkeypatch.setattr(image_file, "write_atomically", note)
    write(tmp_path, end=False).on_exception(None, None, RuntimeError())
    assert threads
    assert threading.current_thread().name not in threads


def test_the_next_batch_waits_when_the_disk_is_far_behind(write, tmp_path, monkeypatch):
    monkeypatch.setattr(open_run, "_MAX_WAITING", 2)
    image_writer = write(tmp_path, [request(str(i), i, 0) for i in range(9)], end=False)
    assert len(image_writer.run._waiting) <= 2
    image_writer.on_predict_end(None, None)
    assert len(log_of(tmp_path).read_text().splitlines()) == 9


def test_a_folder_that_cannot_be_made_is_an_error_before_anything_is_generated(write, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"writer\.output_dir: cannot write to .*file/out"):
        write(tmp_path / "file" / "out")


def test_a_grid_holds_all_images_of_a_prompt(write, tmp_path):
    requests = [request(image_index=number) for number in range(3)]
    write(tmp_path, requests, format="png", grid=True)
    (path,) = tmp_path.glob("*/grid.jpg")
    with Image.open(path) as grid:
        assert (grid.format, grid.mode, grid.size) == ("JPEG", "RGB", (96, 96))
        pixels = np.asarray(grid).astype(int)
    expected = photo().permute(1, 2, 0).numpy()
    for x, y in ((0, 0), (48, 0), (0, 48)):
        assert np.abs(pixels[y : y + 48, x : x + 48] - expected).max() < 25
    assert pixels[56:, 56:].max() < 25  # there is no fourth image


def test_a_grid_is_made_anew_only_when_images_came_after_it(write, tmp_path):
    write(tmp_path, [request(image_index=0)], grid=True)
    (path,) = tmp_path.glob("*/grid.jpg")
    made = path.stat().st_mtime_ns
    write(tmp_path, [request(image_index=0)], grid=True)
    assert path.stat().st_mtime_ns == made
    write(tmp_path, [request(image_index=n) for n in range(2)])  # a run without grids
    write(tmp_path, [request(image_index=n) for n in range(2)], grid=True)
    with Image.open(path) as grid:
        assert grid.size == (96, 48)


def test_a_grid_from_the_future_is_not_believed(write, tmp_path):
    """After a clock has gone back, images made later look older than the grid."""
    write(tmp_path, [request(image_index=0)], grid=True)
    (path,) = tmp_path.glob("*/grid.jpg")
    os.utime(path, (2**32, 2**32))
    write(tmp_path, [request(image_index=n) for n in range(2)], grid=True)
    with Image.open(path) as grid:
        assert grid.size == (96, 48)


@pytest.mark.parametrize("length", [0, 1, -1])
@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_an_image_that_is_cut_off_is_made_again(write, tmp_path, format, length):
    settings = {"format": format, "save_tokens": True, "grid": True}
    write(tmp_path, THREE, **settings)
    whole = files(tmp_path)
    for name in (f"00001_b/img_00.{format}", "00002_c/img_00.npy"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:length])
    assert write(tmp_path, THREE, **settings).missing == [(1, 0), (2, 0)]
    assert files(tmp_path) == whole


def test_there_is_no_grid_unless_it_is_asked_for(write, tmp_path):
    write(tmp_path)
    assert not [*tmp_path.rglob("grid.jpg")]


def test_a_run_leaves_a_gallery_unless_it_is_turned_off(write, tmp_path):
    write(tmp_path / "with")
    write(tmp_path / "without", gallery=False)
    text = (tmp_path / "with/index.html").read_text("utf-8")
    assert "img_01.jpg" in text
    assert "0.25" in text  # a setting
    assert not (tmp_path / "without/index.html").exists()


def test_a_gallery_that_cannot_be_written_is_an_error_of_one_line(write, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "index.html")

    monkeypatch.setattr("lit_dola.reports.html.write_atomically", full)
    with pytest.raises(UserError, match=r"cannot write to index\.html: No space left"):
        write(tmp_path)
    assert len(records(tmp_path)) == 1


def test_folders_of_prompts_in_groups(write, tmp_path):
    indices = [0, 2, 3, 11, 100_000]
    requests = [request(str(i), i, 0) for i in indices]
    write(tmp_path, requests, folders_per_group=3, save_tokens=True, grid=True)
    places = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("img_*.jpg")}
    assert places == {
        "00000-00002/00000_0", "00000-00002/00002_2", "00003-00005/00003_3",
        "00009-00011/00011_11", "99999-100001/100000_100000",
    }  # fmt: skip
    assert all((tmp_path / record["file_name"]).exists() for record in records(tmp_path))
    assert len(list(tmp_path.rglob("grid.jpg"))) == len(indices)
    assert write(tmp_path, requests, folders_per_group=3, save_tokens=True).missing == []
    assert write(tmp_path, requests, folders_per_group=None, save_tokens=True).missing == []
    next(tmp_path.rglob("00011_11/img_00.npy")).unlink()
    again = write(tmp_path, requests, folders_per_group=3, save_tokens=True)
    assert again.missing == [(11, 0)]
    write(tmp_path, requests, on_mismatch="overwrite", model={"alpha": 0.5})
    assert not list(tmp_path.glob("*-*/"))  # the groups are gone with what was in them
    assert len(list(tmp_path.glob("*/img_00.jpg"))) == len(indices)


def test_a_group_that_is_a_link_is_refused(write, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/00000-00009").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a symbolic link; expected a folder"):
        write(tmp_path / "run", folders_per_group=10)
    assert not any((tmp_path / "elsewhere").iterdir())
