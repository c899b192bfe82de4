"""Exporting a run to the folders that the benchmarks' own scoring programs read.

=============  =====================================================  =================
export         form                                                   images per prompt
=============  =====================================================  =================
geneval        ``00000/metadata.jsonl``, ``00000/samples/00000.png``  any number
geneval2       ``image_paths.json``, prompt -> ``images/00000.png``   1
dpg            ``{id}.png``, the prompt's images in a square          1 or 4
t2i-compbench  ``samples/{prompt}_{number:06}.png``                   any number
wise           ``{prompt_id}.png``                                    1
hpsv2          ``{style}/{index in its style:05}.jpg``                1
flat           ``00000_00.png``, as FID's programs read a folder      any number
=============  =====================================================  =================

Sources: the programs of GenEval (Ghosh et al. 2023), GenEval 2 (Kamath et al. 2025), DPG-Bench (Hu
et al. 2024, ELLA), T2I-CompBench (Huang et al. 2023), WISE (Niu et al. 2025) and HPSv2 (Wu et al.
2023); docs/how-to.md has their command lines.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from lit_dola.data.entry_file import find_key
from lit_dola.data.requests import Entry
from lit_dola.errors import UserError
from lit_dola.reports.contact_sheet import tile
from lit_dola.runs.files import make_folder, safe_name, to_json, write_atomically, write_png
from lit_dola.runs.image_file import read_image
from lit_dola.runs.records import ImageRecord

Export = Literal["geneval", "geneval2", "dpg", "t2i-compbench", "wise", "hpsv2", "flat"]
Prompts = list[list[ImageRecord]]
"""The records of each prompt's images."""
_JPEG_QUALITY = 95
_LONGEST_NAME = 255
"""Maximum bytes of a file's name."""


@dataclass
class _Layout:
    """Files of an export, by paths relative to its folder."""

    images: dict[str, list[ImageRecord]] = field(default_factory=dict)
    """Image files; several records in one are a square."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Other files."""
    paths_by_prompt: dict[str, str] = field(default_factory=dict)
    """Image files by prompt, for ``image_paths.json``; empty if there is none."""


def write_export(export: Export, run: Path, records: Iterable[ImageRecord], folder: Path) -> None:
    """Write images of a run in a benchmark's form, losslessly as PNG; HPSv2 needs JPEG.

    The benchmark's program scores every file of the folder, so images and prompts of an earlier
    export that are not among these are deleted.

    Args:
        export: The benchmark.
        run: Folder of the run.
        records: Records of the images, in the order of prompts and images.
        folder: Folder to write to; created if needed.

    Raises:
        UserError: If an image cannot be read, two would have one file, or the entries or the number
            of images are not what the benchmark needs.
        OSError: If the folder cannot be written.
    """
    form = _FORMS[export]
    prompts = [list(g) for _, g in groupby(records, key=lambda record: record.prompt_index)]
    layout = form.arrange(prompts)
    folder.mkdir(parents=True, exist_ok=True)
    if layout.paths_by_prompt:
        absolute = {text: str(folder.resolve() / path) for text, path in
                    layout.paths_by_prompt.items()}  # fmt: skip
        layout.texts["image_paths.json"] = to_json(absolute)
    for path in [*layout.images, *layout.texts]:
        for parent in reversed(Path(path).parents[:-1]):
            make_folder(folder / parent)
    for path, content in layout.texts.items():
        write_atomically(folder / path, [content])
    for path, records_of_file in layout.images.items():
        images = [read_image(run / record.file_name) for record in records_of_file]
        _write_image(folder / path, tile(images, columns=2 if images[1:] else 1))
    _delete_others(folder, form.owned, {*layout.images, *layout.texts})


def check_export(export: Export, prompts: Iterable[Entry], images: Sequence[int]) -> None:
    """Check that prompts can be exported, before anything is drawn."""
    _FORMS[export].arrange(
        [
            [ImageRecord("", it.text, it.index, image, {}, it.metadata) for image in images]
            for it in prompts
        ]
    )


def _write_image(path: Path, image: Image.Image) -> None:
    if path.suffix == ".png":
        write_png(path, image)
        return
    encoded = BytesIO()
    image.save(encoded, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    write_atomically(path, [encoded.getvalue()])


def _delete_others(folder: Path, owned: Sequence[str], kept: set[str]) -> None:
    """Delete what an earlier export has written and this one has not, and folders left empty."""
    for pattern in owned:
        for path in folder.glob(pattern):
            if path.relative_to(folder).as_posix() not in kept:
                path.unlink()
                for parent in path.relative_to(folder).parents[:-1]:
                    with suppress(OSError):  # something else is in it
                        (folder / parent).rmdir()


def _geneval(prompts: Prompts) -> _Layout:
    layout = _Layout()
    for records in prompts:
        first = records[0]
        line = to_json({**first.metadata, "prompt": first.prompt})
        layout.texts[f"{first.prompt_index:05}/metadata.jsonl"] = line
        for record in records:
            path = f"{record.prompt_index:05}/samples/{record.image_index:05}.png"
            layout.images[path] = [record]
    return layout


def _geneval2(prompts: Prompts) -> _Layout:
    layout = _Layout()
    for records in prompts:
        first = _only_one("geneval2", records)
        path = f"images/{first.prompt_index:05}.png"
        if first.prompt in layout.paths_by_prompt:
            raise UserError(
                f"{first.prompt!r:.60} occurs twice, at {first.prompt_index}",
                "different prompts, which name the images",
                setting="export geneval2",
            )
        layout.images[path] = [first]
        layout.paths_by_prompt[first.prompt] = path
    return layout


def _t2i_compbench(prompts: Prompts) -> _Layout:
    layout = _Layout()
    for number, record in enumerate(record for records in prompts for record in records):
        name = f"{record.prompt}_{number:06}.png"
        too_long = len(name.encode()) > _LONGEST_NAME
        if too_long or set(record.prompt) & set("/\0_\n"):
            raise UserError(
                f"prompt {record.prompt_index}, {record.prompt!r:.60}, cannot be the name of a"
                " file",
                f"at most {_LONGEST_NAME} bytes, and no / or _, at which the benchmark's program"
                " divides it",
                setting="export t2i-compbench",
            )
        layout.images[f"samples/{name}"] = [record]
    return layout


def _wise(prompts: Prompts) -> _Layout:
    layout = _Layout()
    for records in prompts:
        first = _only_one("wise", records)
        own = _value(first, "prompt_id")
        if not isinstance(own, str | int) or not str(own).isdecimal():
            raise UserError(
                f"prompt {first.prompt_index} has no prompt_id",
                "data.prompt_json to be a list of WISE's, or a folder of its lists",
                setting="export wise",
            )
        path = f"{int(own)}.png"
        if path in layout.images:
            raise UserError(
                f"prompt_id {own} occurs twice", "different ones", setting="export wise"
            )
        layout.images[path] = [first]
    return layout


def _hpsv2(prompts: Prompts) -> _Layout:
    layout = _Layout()
    for records in prompts:
        first = _only_one("hpsv2", records)
        style, index = _value(first, "style"), _value(first, "style_index")
        if not isinstance(style, str) or safe_name(style) != style or type(index) is not int:
            raise UserError(
                f"prompt {first.prompt_index} has no style or style_index",
                "data.prompt_json to be the folder of HPSv2's lists, such as anime.json",
                setting="export hpsv2",
            )
        path = f"{style}/{index:05}.jpg"
        if path in layout.images:
            raise UserError(
                f"prompt {index} of {style} occurs twice", "each once", setting="export hpsv2"
            )
        layout.images[path] = [first]
    return layout


def _flat(prompts: Prompts) -> _Layout:
    records = [record for own in prompts for record in own]
    return _Layout(
        {f"{record.prompt_index:05}_{record.image_index:02}.png": [record] for record in records}
    )


def _dpg(prompts: Prompts) -> _Layout:
    """Return the records of each prompt by the name of its file."""
    layout = _Layout()
    ids: dict[str, str] = {}
    for records in prompts:
        own = _dpg_id(records)
        name = safe_name(own)
        other = ids.setdefault(name.casefold(), own)  # some file systems ignore case
        if f"{name}.png" in layout.images or other != own:
            raise UserError(
                f"the ids {other!r} and {own!r} both become {name}.png",
                "ids that differ as names of files",
                setting="export dpg",
            )
        layout.images[f"{name}.png"] = records
    return layout


def _dpg_id(records: list[ImageRecord]) -> str:
    """Return the id of a prompt that DPG-Bench can score."""
    first = records[0]
    name = first.metadata.get("id")
    if not isinstance(name, str) or not safe_name(name):
        raise UserError(
            f"prompt {first.prompt_index} has no id",
            "data.prompt_json to be DPG-Bench's folder of prompts, or prompts with the names"
            " of its files as ids",
            setting="export dpg",
        )
    if len(records) not in (1, 4):
        raise UserError(
            f"{len(records)} images of prompt {name!r}",
            "model.parallel_size 4, as its authors advise, or 1",
            setting="export dpg",
        )
    return name


def _only_one(export: Export, records: list[ImageRecord]) -> ImageRecord:
    if len(records) > 1:
        raise UserError(
            f"export {export}: {len(records)} images of prompt {records[0].prompt_index}",
            "model.parallel_size 1: the benchmark has one image per prompt",
        )
    return records[0]


def _value(record: ImageRecord, key: str) -> Any:
    return record.metadata.get(find_key(record.metadata, (key,)) or "")


@dataclass(frozen=True)
class _Form:
    """Layout of a benchmark."""

    arrange: Callable[[Prompts], _Layout]
    owned: tuple[str, ...]
    """Patterns of the files that the export writes, and no program besides."""


_FORMS: dict[Export, _Form] = {
    "geneval": _Form(_geneval, ("[0-9]*/samples/*.png", "[0-9]*/metadata.jsonl")),
    "geneval2": _Form(_geneval2, ("images/*.png", "image_paths.json")),
    "dpg": _Form(_dpg, ("*.png",)),
    "t2i-compbench": _Form(_t2i_compbench, ("samples/*.png",)),
    "wise": _Form(_wise, ("[0-9]*.png",)),
    "hpsv2": _Form(_hpsv2, ("*/[0-9]*.jpg",)),
    "flat": _Form(_flat, ("[0-9]*_[0-9]*.png",)),
}
