"""Exporting a run to the folders that the benchmarks' own scoring programs read.

GenEval (Ghosh et al. 2023; ``evaluation/evaluate_images.py``):
``00000/metadata.jsonl`` and ``00000/samples/00000.png``; the folder is the prompt's index.

DPG-Bench (Hu et al. 2024, ELLA; ``dpg_bench/compute_dpg_bench.py``): ``{id}.png``, where the id is
the name of the prompt's file, with four images of the prompt in a square.
"""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from shutil import rmtree
from typing import Literal

from lit_dola.data.requests import Prompt
from lit_dola.errors import UserError
from lit_dola.reports.contact_sheet import tile
from lit_dola.runs.files import make_folder, safe_name, to_json, write_atomically, write_png
from lit_dola.runs.image_file import read_image
from lit_dola.runs.records import ImageRecord

Export = Literal["geneval", "dpg"]


def write_export(export: Export, run: Path, records: Iterable[ImageRecord], folder: Path) -> None:
    """Write images of a run in a benchmark's form, losslessly, as PNG.

    The benchmark's program scores whatever lies in the folder, so images and prompts of an earlier
    export that are not among these are deleted.

    Args:
        export: The benchmark.
        run: Folder of the run.
        records: Records of the images, in the order of prompts and images.
        folder: Folder to write to; created if needed.

    Raises:
        UserError: If an image cannot be read; for DPG-Bench, if a prompt has no id of its own or
            does not have one or four images.
        OSError: If the folder cannot be written.
    """
    prompts = [list(g) for _, g in groupby(records, key=lambda record: record.prompt_index)]
    folder.mkdir(parents=True, exist_ok=True)
    if export == "geneval":
        _write_geneval(run, prompts, folder)
    else:
        _write_dpg(run, prompts, folder)


def check_dpg(prompts: Iterable[Prompt], parallel_size: int) -> None:
    """Check that prompts can be exported for DPG-Bench, before anything is drawn.

    Raises:
        UserError: As :func:`write_export`.
    """
    images = range(parallel_size)
    _by_dpg_name(
        [ImageRecord("", text, index, image, {}, metadata) for image in images]
        for index, text, metadata in prompts
    )


def _write_geneval(run: Path, prompts: list[list[ImageRecord]], folder: Path) -> None:
    for records in prompts:
        first = records[0]
        prompt_folder = folder / f"{first.prompt_index:05}"
        make_folder(prompt_folder)
        make_folder(prompt_folder / "samples")
        line = to_json({**first.metadata, "prompt": first.prompt})
        write_atomically(prompt_folder / "metadata.jsonl", [line])
        for record in records:
            target = prompt_folder / "samples" / f"{record.image_index:05}.png"
            write_png(target, read_image(run / record.file))
        indices = {record.image_index for record in records}
        for path in (prompt_folder / "samples").glob("*.png"):
            if not (path.stem.isdecimal() and int(path.stem) in indices):
                path.unlink()
    indices = {records[0].prompt_index for records in prompts}
    for prompt_folder in folder.iterdir():
        if prompt_folder.name.isdecimal() and int(prompt_folder.name) not in indices:
            rmtree(prompt_folder)


def _write_dpg(run: Path, prompts: list[list[ImageRecord]], folder: Path) -> None:
    files = {folder / f"{name}.png": records for name, records in _by_dpg_name(prompts).items()}
    for path, records in files.items():
        images = [read_image(run / record.file) for record in records]
        write_png(path, tile(images, columns=2 if images[1:] else 1))
    for path in folder.glob("*.png"):
        if path not in files:
            path.unlink()


def _by_dpg_name(prompts: Iterable[list[ImageRecord]]) -> dict[str, list[ImageRecord]]:
    """Return the records of each prompt by the name of its file.

    Raises:
        UserError: If two prompts have one name.
    """
    by_name: dict[str, list[ImageRecord]] = {}
    ids: dict[str, str] = {}
    for records in prompts:
        own = _dpg_id(records)
        name = safe_name(own)
        other = ids.setdefault(name.casefold(), own)  # some file systems ignore case
        if name in by_name or other != own:
            raise UserError(
                f"export dpg: the ids {other!r} and {own!r} both become {name}.png; expected ids"
                " that differ as names of files"
            )
        by_name[name] = records
    return by_name


def _dpg_id(records: list[ImageRecord]) -> str:
    """Return the id of a prompt that DPG-Bench can score.

    Raises:
        UserError: If there is none, or not the right number of images.
    """
    first = records[0]
    name = first.metadata.get("id")
    if not isinstance(name, str) or not safe_name(name):
        raise UserError(
            f"export dpg: prompt {first.prompt_index} has no id; expected data.prompt_json to be"
            " DPG-Bench's folder of prompts, or prompts with the names of its files as ids"
        )
    if len(records) not in (1, 4):
        raise UserError(
            f"export dpg: {len(records)} images of prompt {name!r}; expected model.parallel_size 4,"
            " as its authors advise, or 1"
        )
    return name
