"""Images in the folders that the benchmarks' own scoring programs read.

GenEval (Ghosh et al. 2023; ``evaluation/evaluate_images.py``):
``00000/metadata.jsonl`` and ``00000/samples/00000.png``, the prompt's place in the file first.

DPG-Bench (Hu et al. 2024, ELLA; ``dpg_bench/compute_dpg_bench.py``): ``{id}.png``, where the id is
the name of the prompt's file, four images of the prompt in a square, left to right and down.
"""

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Literal

from PIL import Image

from lit_dola.contact_sheet import read_rgb, tile
from lit_dola.errors import UserError
from lit_dola.run_folder import Record, safe_name, write_atomically, write_png

Layout = Literal["geneval", "dpg"]


def write_layout(layout: Layout, run: Path, records: Iterable[Record], folder: Path) -> None:
    """Write the images of a run as a benchmark wants them, losslessly, as PNG.

    Args:
        layout: Whose.
        run: Folder of the run.
        records: Of its ``metadata.jsonl``, in the order of prompts and images.
        folder: Where to; made if it is not there.

    Raises:
        UserError: If a prompt has no id, or other than one or four images, where DPG-Bench needs
            them.
    """
    write = _write_geneval if layout == "geneval" else _write_dpg
    for _, group in groupby(records, key=lambda record: record["prompt_index"]):
        write(run, list(group), folder)


def _write_geneval(run: Path, records: list[Record], folder: Path) -> None:
    first = records[0]
    prompt_folder = folder / f"{first['prompt_index']:05}"
    (prompt_folder / "samples").mkdir(parents=True, exist_ok=True)
    line = json.dumps({**first["metadata"], "prompt": first["prompt"]}, ensure_ascii=False)
    write_atomically(prompt_folder / "metadata.jsonl", [line.encode(), b"\n"])
    for record in records:
        target = prompt_folder / "samples" / f"{record['image_index']:05}.png"
        with Image.open(run / record["file"]) as image:
            write_png(target, image)


def _write_dpg(run: Path, records: list[Record], folder: Path) -> None:
    first = records[0]
    name = first["metadata"].get("id")
    if not isinstance(name, str):
        raise UserError(
            f"layout dpg: prompt {first['prompt_index']} has no id; expected data.prompt_json to be"
            " DPG-Bench's folder of prompts, or prompts with the names of its files as ids"
        )
    if len(records) not in (1, 4):
        raise UserError(
            f"layout dpg: {len(records)} images of prompt {name!r}; expected model.parallel_size 4,"
            " as its authors advise, or 1"
        )
    images = [read_rgb(run / record["file"]) for record in records]
    folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / f"{safe_name(name)}.png", tile(images, columns=2 if images[1:] else 1))
