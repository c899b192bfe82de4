"""The folders that GenEval's and DPG-Bench's own programs read."""

import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from lit_dola.data.requests import Entry
from lit_dola.errors import UserError
from lit_dola.reports.export import Export, check_export, write_export
from lit_dola.runs.records import ImageRecord

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}]},
    {"tag": "counting", "include": [{"class": "orange", "count": 3}], "exclude": []},
]


@pytest.fixture
def run(tmp_path):
    """A run's folder and its records, of two prompts."""

    def make(images, metadata=GENEVAL):
        records, rng = [], np.random.default_rng(0)
        for prompt_index, extra in enumerate(metadata):
            for image_index in range(images):
                file = f"p{prompt_index}/img_{image_index:02}.png"
                (tmp_path / "run" / file).parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "run" / file)
                place = {"prompt_index": prompt_index, "image_index": image_index}
                prompt = f"a é {prompt_index}"
                records.append({"file_name": file, "prompt": prompt, **place, "metadata": extra})
        return tmp_path / "run", [ImageRecord.from_line(line) for line in records]

    return make


def pixels(path, box=None):
    with Image.open(path) as image:
        return np.asarray(image.crop(box) if box else image)


def test_geneval(run, tmp_path):
    folder, records = run(images=3)
    write_export("geneval", folder, records, tmp_path / "out")
    for prompt_index, metadata in enumerate(GENEVAL):
        # In the same way as evaluate_images.py.
        subfolder = tmp_path / "out" / f"{prompt_index:0>5}"
        assert json.loads((subfolder / "metadata.jsonl").read_text()) == {
            **metadata,
            "prompt": f"a é {prompt_index}",
        }
        names = sorted(path.name for path in (subfolder / "samples").iterdir())
        assert names == ["00000.png", "00001.png", "00002.png"]
        assert all(re.match(r"\d+\.png", name) for name in names)
        for name, record in zip(names, records[3 * prompt_index :]):
            np.testing.assert_array_equal(
                pixels(subfolder / "samples" / name), pixels(folder / record.file_name)
            )
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("images", [1, 4])
def test_dpg(run, tmp_path, images):
    folder, records = run(images, [{"id": "COCOval2014000000010363"}, {"id": "12"}])
    write_export("dpg", folder, records, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["12.png", "COCOval2014000000010363.png"]
    # Cut in the same way as by compute_dpg_bench.py with --resolution 8.
    boxes = [(0, 0, 8, 8), (8, 0, 16, 8), (0, 8, 8, 16), (8, 8, 16, 16)][:images]
    for name, group in (("12.png", records[images:]), (files[1], records[:images])):
        for box, record in zip(boxes, group):
            np.testing.assert_array_equal(
                pixels(tmp_path / "out" / name, box), pixels(folder / record.file_name)
            )


def test_dpg_needs_ids_and_one_or_four_images(run, tmp_path):
    with pytest.raises(UserError, match=r"prompt 0 has no id; expected"):
        write_export("dpg", *run(images=4), tmp_path / "out")
    with pytest.raises(UserError, match=r"2 images of prompt 'a'; expected model\.parallel_size 4"):
        write_export("dpg", *run(2, [{"id": "a"}]), tmp_path / "out")


def names(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for end in ("png", "jpg")
        for path in folder.rglob(f"*.{end}")
    )


MANY = {"geneval": 4, "dpg": 4, "t2i-compbench": 4, "flat": 4}
"""Images per prompt, where there may be several."""


@pytest.mark.parametrize("export", get_args(Export))
def test_an_export_holds_exactly_this_run(export, run, tmp_path):
    """After one of more prompts and images, nothing of it is left to be scored."""
    entries = [
        {"id": f"p{i}", "prompt_id": i + 1, "style": "anime", "style_index": i} for i in range(3)
    ]
    images = MANY.get(export, 1)
    write_export(export, *run(images, entries), tmp_path / "out")
    assert len(names(tmp_path / "out")) == (3 if export == "dpg" else 3 * images)
    (tmp_path / "out" / "results.jsonl").write_text("of the official program")
    folder, records = run(1, entries[:2])
    write_export(export, folder, records, tmp_path / "out")
    write_export(export, folder, records, tmp_path / "fresh")
    assert names(tmp_path / "out") == names(tmp_path / "fresh")
    assert not (tmp_path / "out" / "00002").exists()
    assert (tmp_path / "out" / "results.jsonl").exists()


def test_geneval2(run, tmp_path, monkeypatch):
    """A JSON of prompt -> path, which its program opens from wherever it runs."""
    folder, records = run(1, [{"atom_count": 3}, {}])
    monkeypatch.chdir(tmp_path)
    write_export("geneval2", folder, records, Path("out"))
    monkeypatch.chdir("/")
    paths = json.loads((tmp_path / "out/image_paths.json").read_text())
    assert [*paths] == ["a é 0", "a é 1"]
    for path, record in zip(paths.values(), records, strict=True):
        np.testing.assert_array_equal(pixels(path), pixels(folder / record.file_name))


def test_t2i_compbench(run, tmp_path):
    """As BLIP_vqa.py takes names apart: prompts before "_", in the order of the numbers after."""
    folder, records = run(2, [{}, {}])
    write_export("t2i-compbench", folder, records, tmp_path / "out")
    files = [path.name for path in (tmp_path / "out/samples").iterdir()]
    files.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))
    assert [name.split("_")[0] for name in files] == [record.prompt for record in records]
    for name, record in zip(files, records, strict=True):
        np.testing.assert_array_equal(
            pixels(tmp_path / "out/samples" / name), pixels(folder / record.file_name)
        )


@pytest.mark.parametrize("key", ["prompt_id", "Prompt_ID"])
@pytest.mark.parametrize("value", [7, "7"])
def test_wise(key, value, run, tmp_path):
    folder, records = run(1, [{key: value}, {key: 1000}])
    write_export("wise", folder, records, tmp_path / "out")
    for name, record in zip(("7.png", "1000.png"), records):
        np.testing.assert_array_equal(
            pixels(tmp_path / "out" / name), pixels(folder / record.file_name)
        )


def test_hpsv2(run, tmp_path):
    places = [("anime", 0), ("anime", 1), ("concept-art", 0)]
    entries = [{"style": style, "style_index": index} for style, index in places]
    write_export("hpsv2", *run(1, entries), tmp_path / "out")
    for style, index in places:
        with Image.open(tmp_path / f"out/{style}/{index:05}.jpg") as image:
            assert (image.format, image.size) == ("JPEG", (8, 8))


def test_flat(run, tmp_path):
    folder, records = run(2, [{}, {}])
    write_export("flat", folder, records, tmp_path / "out")
    assert names(tmp_path / "out") == [
        "00000_00.png",
        "00000_01.png",
        "00001_00.png",
        "00001_01.png",
    ]


ONE = {"prompt_id": 1, "style": "photo", "style_index": 0}
CANNOT = {
    "geneval2, two images": (
        "geneval2",
        2,
        [ONE],
        "2 images of prompt 0; expected",
    ),
    "wise, two images": ("wise", 2, [ONE], "2 images of prompt 0; expected model.para"),
    "hpsv2, two images": (
        "hpsv2",
        2,
        [ONE],
        "2 images of prompt 0; expected model.parallel_size 1",
    ),
    "no prompt_id": ("wise", 1, [{}], "prompt 0 has no prompt_id; expected data.prompt_json to be"),
    "a path as a prompt_id": ("wise", 1, [{"prompt_id": "../1"}], "prompt 0 has no prompt_id"),
    "a prompt_id twice": ("wise", 1, [ONE, ONE], "prompt_id 1 occurs twice"),
    "no style": ("hpsv2", 1, [{"style_index": 0}], "prompt 0 has no style or style_index"),
    "a path as a style": ("hpsv2", 1, [{**ONE, "style": "../a"}], "prompt 0 has no style"),
    "a style twice": ("hpsv2", 1, [ONE, ONE], "prompt 0 of photo occurs twice"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_be_exported(case, run, tmp_path):
    export, images, entries, message = CANNOT[case]
    folder, records = run(images, entries)
    with pytest.raises(UserError, match=re.escape(f"export {export}: {message}")):
        write_export(export, folder, records, tmp_path / "out")
    assert names(tmp_path / "out") == []
    prompts = [Entry(i, f"a {i}", entry) for i, entry in enumerate(entries)]
    with pytest.raises(UserError, match=re.escape(message)):
        check_export(export, prompts, range(images))


@pytest.mark.parametrize("text", ["a/b", "a_b", "a\nb", "é" * 130])
def test_prompts_that_cannot_be_names_of_files(text, tmp_path):
    with pytest.raises(
        UserError, match=r"export t2i-compbench: prompt 0, .* cannot be the name of"
    ):
        check_export("t2i-compbench", [Entry(0, text, {})], [0])


def test_prompts_that_name_one_image():
    with pytest.raises(UserError, match=r"export geneval2: 'a' occurs twice, at 1; expected"):
        check_export("geneval2", [Entry(0, "a", {}), Entry(1, "a", {})], [0])


@pytest.mark.parametrize(
    ("one", "other"), [("a/b", "a:b"), ("x" * 80 + "1", "x" * 80 + "2"), ("A", "a"), ("a", "a")]
)
def test_dpg_ids_that_become_one_file(one, other, run, tmp_path):
    with pytest.raises(UserError, match=r"export dpg: the ids .* and .* both become .*\.png"):
        write_export("dpg", *run(1, [{"id": one}, {"id": other}]), tmp_path / "out")
    assert names(tmp_path / "out") == []
