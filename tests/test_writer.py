"""What lies in the output folder: names, formats, and the record of each image."""

import errno
import json
import threading
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from lit_dola import writer
from lit_dola.data import ImageRequest, Prompt
from lit_dola.errors import UserError
from lit_dola.module import GeneratedImages, LitDoLa, to_uint8
from lit_dola.writer import ImageWriter, image_path, safe_name, write_atomically

PROMPT = 'A "red" apple / 猫 <b>&amp;</b> 🙂'


def request(text=PROMPT, index=3, image_index=1):
    return ImageRequest(Prompt(index, text, {"tag": "x", "id": 9}), image_index, [0, 1])


def trainer(rank=0, world_size=1):
    strategy = SimpleNamespace(barrier=lambda name: None)
    return SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        is_global_zero=rank == 0,
        precision="32-true",
        strategy=strategy,
    )


def photo():
    """A smooth picture, 3 x 48 x 48: a codec of high quality keeps it nearly as it is."""
    x = torch.linspace(0, 1, 48)
    channels = [x.expand(48, 48), x[:, None].expand(48, 48), (1 - x).expand(48, 48)]
    return (torch.stack(channels) * 255).to(torch.uint8)


def write(folder, requests=None, end=True, rank=0, **settings):
    requests = requests or [request()]
    image_writer = ImageWriter(str(folder), **settings)
    module = LitDoLa(model_path="tiny-janus", alpha=0.25)
    image_writer.setup(trainer(rank), module, "predict")
    images = GeneratedImages(
        requests,
        torch.arange(16, dtype=torch.int32).expand(len(requests), -1),
        photo().expand(len(requests), -1, -1, -1),
    )
    image_writer.write_on_batch_end(trainer(rank), module, images, None, requests, 0, 0)
    if end:
        image_writer.on_predict_end(trainer(rank), module)
    return image_writer


def records(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").open(encoding="utf-8")]


def test_names_are_those_of_the_old_script():
    assert image_path(request("a cat", 7, 2)).as_posix() == "00007_a_cat/img_02"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a red  apple", "a_red_apple"),
        ("a/b\\c:d*e?f\"g<h>i|j", "a_b_c_d_e_f_g_h_i_j"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("the end...", "the_end"),
        ("nul\0 tab\t line\n", "nul_tab_line"),
        ("猫が海を見る", "猫が海を見る"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("left\u202eright", "left_right"),
        ("...", ""),
    ],
)  # fmt: skip
def test_safe_name(text, name):
    assert safe_name(text) == name


def test_a_long_prompt_is_cut_between_characters():
    assert safe_name("é" * 100, max_bytes=81) == "é" * 40
    assert safe_name("a" * 10_000) == "a" * 80


def test_a_prompt_without_a_safe_character_still_has_a_folder():
    assert image_path(request("???", 7, 0)).as_posix() == "00007/img_00"


@given(st.text(min_size=1))
def test_any_prompt_makes_one_safe_folder(text):
    path = image_path(request(text, 12, 0))
    windows = PureWindowsPath(str(path))
    assert len(path.parts) == len(windows.parts) == 2
    assert not windows.is_reserved() if hasattr(windows, "is_reserved") else True
    folder = path.parts[0]
    assert folder.startswith("00012")
    assert len(folder.encode()) < 100
    assert not set(folder) & set('<>:"/\\|?*\0\n\r\t')
    assert folder[-1] not in ". "


@pytest.mark.parametrize(
    ("format", "kind", "tolerance"), [("jpg", "JPEG", 6), ("png", "PNG", 0), ("webp", "WEBP", 10)]
)
def test_formats(tmp_path, format, kind, tolerance):
    write(tmp_path, format=format)
    path = tmp_path / "00003_A_red_apple_猫_b_&amp;_b_🙂" / f"img_01.{format}"
    with Image.open(path) as image:
        assert image.format == kind
        assert (image.mode, image.size) == ("RGB", (48, 48))
        pixels = np.asarray(image).astype(int)
    error = np.abs(pixels - photo().permute(1, 2, 0).numpy())
    assert error.max() <= tolerance


def test_quality_is_95_by_default(tmp_path):
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


def test_metadata_says_what_made_each_image(tmp_path):
    write(tmp_path)
    (record,) = records(tmp_path)
    assert (tmp_path / record["file"]).is_file()
    assert record["prompt"] == PROMPT
    assert (record["prompt_index"], record["image_index"], record["seed"]) == (3, 1, 0)
    assert record["metadata"] == {"tag": "x", "id": 9}
    assert record["model_path"] == "tiny-janus"
    shaping = {
        "dola": True, "alpha": 0.25, "layer_ratio": 0.8, "mid_norm": False, "head": "cond",
        "cfg_weight": 5.0, "temperature": 1.0, "top_k": None, "top_p": None, "roles": "auto",
        "backend": "transformers", "precision": "32-true",
    }  # fmt: skip
    assert {name: record[name] for name in shaping} == shaping
    assert {"layer", "versions"} <= record.keys()
    assert {"lit_dola", "torch", "transformers", "lightning"} == record["versions"].keys()


def test_a_png_carries_its_record_as_text(tmp_path):
    write(tmp_path, format="png")
    (file,) = tmp_path.glob("*/*.png")
    with Image.open(file) as image:
        assert image.text["prompt"] == PROMPT
        assert json.loads(image.text["parameters"])["alpha"] == 0.25


@pytest.mark.parametrize("format", ["jpg", "webp"])
@pytest.mark.parametrize("text", [PROMPT, "long 猫 " * 20_000, "🙂" * 9000, "\x01" * 9000])
def test_a_jpeg_or_webp_carries_its_record_as_exif(tmp_path, format, text):
    write(tmp_path, [request(text)], format=format)
    (file,) = tmp_path.glob(f"*/*.{format}")
    with Image.open(file) as image:
        exif = image.getexif()
    description = exif[ExifTags.Base.ImageDescription].encode("latin-1").decode("utf-8")
    assert description == text[:2000]
    comment = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.startswith(b"UNICODE\0")
    record = json.loads(comment[8:].decode("utf-16-be"))
    assert record["prompt"] == text[:2000]
    assert record["cfg_weight"] == 5.0
    assert records(tmp_path)[0]["prompt"] == text


def test_tokens_lie_beside_the_image(tmp_path):
    write(tmp_path, save_tokens=True)
    (file,) = tmp_path.glob("*/img_01.npy")
    tokens = np.load(file)
    assert (tokens.dtype, tokens.shape) == (np.int32, (16,))
    assert tokens.tolist() == list(range(16))


def test_without_save_tokens_there_are_none(tmp_path):
    write(tmp_path)
    assert not list(tmp_path.glob("*/*.npy"))


def test_ranks_are_merged_in_order_an_image_a_line(tmp_path):
    other = write(tmp_path, [request("b", 1, 0), request("d", 3, 0)], end=False, rank=1)
    other.on_predict_end(trainer(1, world_size=2), None)
    image_writer = write(
        tmp_path, [request("c", 2, 0), request("a", 0, 1), request("a", 0, 0)], end=False
    )
    image_writer.on_predict_end(trainer(0, world_size=2), None)
    assert [(r["prompt_index"], r["image_index"]) for r in records(tmp_path)] == [
        (0, 0), (0, 1), (1, 0), (2, 0), (3, 0),
    ]  # fmt: skip
    assert not list(tmp_path.glob("metadata.*.jsonl"))


def test_a_second_run_replaces_lines_of_the_same_image(tmp_path):
    write(tmp_path, [request("a", 0, 0), request("b", 1, 0)])
    write(tmp_path, [request("b", 1, 0), request("c", 2, 0)])
    assert [r["prompt"] for r in records(tmp_path)] == ["a", "b", "c"]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    path = tmp_path / "img.jpg"
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"


def test_the_name_appears_only_when_the_file_is_whole(tmp_path):
    path = tmp_path / "img.jpg"
    write_atomically(path, lambda file: file.write(b"x" if not path.exists() else b"torn"))
    assert path.read_bytes() == b"x"


def test_a_full_disk_is_an_error_and_what_was_written_is_recorded(tmp_path, monkeypatch):
    def fail(path, write):
        if "00001" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomically(path, write)

    monkeypatch.setattr(writer, "write_atomically", fail)
    images = [request(text, index, 0) for index, text in enumerate("abc")]
    with pytest.raises(UserError, match=r"cannot write to .*00001_b/img_00\.jpg: No space left"):
        write(tmp_path, images)
    part = (tmp_path / "metadata.0.jsonl").read_text()
    assert [json.loads(line)["prompt"] for line in part.splitlines()] == ["a"]


def test_what_was_generated_is_written_when_something_else_ends_the_run(tmp_path):
    image_writer = write(tmp_path, [request(str(i), i, 0) for i in range(9)], end=False)
    image_writer.on_exception(trainer(), None, RuntimeError("out of memory"))
    assert len(list(tmp_path.glob("*/*.jpg"))) == 9
    assert len((tmp_path / "metadata.0.jsonl").read_text().splitlines()) == 9


def test_images_are_written_off_the_main_thread(tmp_path, monkeypatch):
    threads = set()

    def note(path, write):
        threads.add(threading.current_thread().name)
        write_atomically(path, write)

    monkeypatch.setattr(writer, "write_atomically", note)
    write(tmp_path, end=False).on_exception(trainer(), None, RuntimeError())
    assert threads
    assert threading.current_thread().name not in threads


def test_the_next_batch_waits_when_the_disk_is_far_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_MOST_WAITING", 2)
    image_writer = write(tmp_path, [request(str(i), i, 0) for i in range(9)], end=False)
    assert len(image_writer._writing) <= 2
    image_writer.on_predict_end(trainer(), None)
    assert len(records(tmp_path)) == 9


def test_a_folder_that_cannot_be_made_is_an_error_before_anything_is_generated(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"writer\.output_dir: cannot write to .*file/out"):
        write(tmp_path / "file" / "out")


def test_pixels_are_cut_off_and_not_rounded():
    """As in DeepSeek's script: 0.999 of the way to 255 is 254."""
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.9999, 1.0, 1.7])
    assert to_uint8(pixels).tolist() == [0, 0, 127, 254, 255, 255]


def test_a_rename_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "img.jpg"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no rename")))
    with pytest.raises(OSError, match="no rename"):
        write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["img.jpg"]
