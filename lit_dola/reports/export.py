"""Exporting a run to the folders that the benchmarks' own scoring programs read.

GenEval (Ghosh et al. 2023; ``evaluation/evaluate_images.py``):
``00000/metadata.jsonl`` and ``00000/samples/00000.png``; the folder is the prompt's index.

DPG-Bench (Hu et al. 2024, ELLA; ``dpg_bench/compute_dpg_bench.py``): ``{id}.png``, where the id is
the name of the prompt's file, with four images of the prompt in a square.
"""

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Literal

from PIL import Image

from lit_dola.errors import UserError
from lit_dola.reports.contact_sheet import read_rgb, tile
from lit_dola.runs.files import safe_name, write_atomically, write_png
from lit_dola.runs.records import ImageRecord

Export = Literal["geneval", "dpg"]


def write_export(export: Export, run: Path, records: Iterable[ImageRecord], folder: Path) -> None:
    """Write the images of a run in a benchmark's form, losslessly, as PNG.

    Args:
        export: The benchmark.
        run: Folder of the run.
        records: Records of its images, in the order of prompts and images.
        folder: Folder to write to; created if needed.

    Raises:
        UserError: For DPG-Bench, if a prompt has no id or does not have one or four images.
    """
    write = _write_geneval if export == "geneval" else _write_dpg
    for _, group in groupby(records, key=lambda record: record.prompt_index):
        write(run, list(group), folder)


def _write_geneval(run: Path, records: list[ImageRecord], folder: Path) -> None:
    first = records[0]
    prompt_folder = folder / f"{first.prompt_index:05}"
    (prompt_folder / "samples").mkdir(parents=True, exist_ok=True)
    line = json.dumps({**first.metadata, "prompt": first.prompt}, ensure_ascii=False)
    write_atomically(prompt_folder / "metadata.jsonl", [line.encode(), b"\n"])
    for record in records:
        target = prompt_folder / "samples" / f"{record.image_index:05}.png"
        with Image.open(run / record.file) as image:
            write_png(target, image)


def _write_dpg(run: Path, records: list[ImageRecord], folder: Path) -> None:
    first = records[0]
    name = first.metadata.get("id")
    if not isinstance(name, str):
        raise UserError(
            f"export dpg: prompt {first.prompt_index} has no id; expected data.prompt_json to be"
            " DPG-Bench's folder of prompts, or prompts with the names of its files as ids"
        )
    if len(records) not in (1, 4):
        raise UserError(
            f"export dpg: {len(records)} images of prompt {name!r}; expected model.parallel_size 4,"
            " as its authors advise, or 1"
        )
    images = [read_rgb(run / record.file) for record in records]
    folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / f"{safe_name(name)}.png", tile(images, columns=2 if images[1:] else 1))
