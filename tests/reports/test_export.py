"""The folders that GenEval's and DPG-Bench's own programs read."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from lit_dola.errors import UserError
from lit_dola.reports.export import write_export
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
                records.append({"file": file, "prompt": "a é", **place, "metadata": extra})
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
            "prompt": "a é",
        }
        names = sorted(path.name for path in (subfolder / "samples").iterdir())
        assert names == ["00000.png", "00001.png", "00002.png"]
        assert all(re.match(r"\d+\.png", name) for name in names)
        for name, record in zip(names, records[3 * prompt_index :]):
            np.testing.assert_array_equal(
                pixels(subfolder / "samples" / name), pixels(folder / record.file)
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
                pixels(tmp_path / "out" / name, box), pixels(folder / record.file)
            )


def test_dpg_needs_ids_and_one_or_four_images(run, tmp_path):
    with pytest.raises(UserError, match=r"prompt 0 has no id; expected"):
        write_export("dpg", *run(images=4), tmp_path / "out")
    with pytest.raises(UserError, match=r"2 images of prompt 'a'; expected model\.parallel_size 4"):
        write_export("dpg", *run(2, [{"id": "a"}]), tmp_path / "out")


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


@pytest.mark.parametrize("export", ["geneval", "dpg"])
def test_an_export_holds_exactly_this_run(export, run, tmp_path):
    """After one of more prompts and images, nothing of it is left to be scored."""
    ids = [{"id": f"p{number}"} for number in range(3)]
    write_export(export, *run(4, ids), tmp_path / "out")
    assert len(names(tmp_path / "out")) == (12 if export == "geneval" else 3)
    (tmp_path / "out" / "results.jsonl").write_text("of the official program")
    folder, records = run(1, ids[:2])
    write_export(export, folder, records, tmp_path / "out")
    write_export(export, folder, records, tmp_path / "fresh")
    assert names(tmp_path / "out") == names(tmp_path / "fresh")
    if export == "geneval":
        assert not (tmp_path / "out" / "00002").exists()
    assert (tmp_path / "out" / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("one", "other"), [("a/b", "a:b"), ("x" * 80 + "1", "x" * 80 + "2"), ("A", "a"), ("a", "a")]
)
def test_dpg_ids_that_become_one_file(one, other, run, tmp_path):
    with pytest.raises(UserError, match=r"export dpg: the ids .* and .* both become .*\.png"):
        write_export("dpg", *run(1, [{"id": one}, {"id": other}]), tmp_path / "out")
    assert names(tmp_path / "out") == []
