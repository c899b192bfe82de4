"""``python main.py compare``: a page that shows runs side by side, image by image."""

import json
from collections.abc import Sequence
from hashlib import sha256
from itertools import combinations, count, groupby
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageChops

from lit_dola.data.requests import RequestKey
from lit_dola.errors import UserError, writing_to
from lit_dola.messages import printable
from lit_dola.registry import record_types
from lit_dola.reports.answers import AnswerRun, write_answer_pages
from lit_dola.reports.html import image_address, write_page
from lit_dola.runs.answers import AnswerRecord
from lit_dola.runs.folder import image_files
from lit_dola.runs.records import ONLY_WITH_DOLA, ImageRecord, RunRecord, common_settings
from lit_dola.settings.checks import given_path

COMPARED: tuple[type[Any], ...] = (ImageRecord, AnswerRecord)
"""Records that can be compared."""
_VARIES = "varies"
_COLUMNS = 48
"""Pixels per row of the small images that are compared."""


class _Run(NamedTuple):
    """A run whose records were read."""

    name: str
    folder: Path
    kind: type[RunRecord]
    records: dict[RequestKey, Any]
    settings: dict[str, Any]


def compare(
    runs: Sequence[str], output: str, seed: int = 0, copy_images: bool = False
) -> list[str]:
    """Write a page that shows runs side by side, ``index.html``; it needs no server.

    Args:
        runs: Folders of runs, two or more.
        output: Folder of the page; created if needed.
        seed: Shuffles the order and sides of the blind comparison; can be changed on the page.
        copy_images: Copy the images next to the page, so that its folder can be moved or sent;
            otherwise the page refers to them where they are.

    Returns:
        One note for each thing that does not match between the runs; the page shows them too.

    Raises:
        UserError: If a folder is not a run's, no image is in all runs, or the page cannot be
            written.
    """
    folders = [given_path("compare", run) for run in runs]
    page_folder = given_path("output", output)
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run", "two or more", setting="compare")
    loaded = [_load(printable(name), folder) for name, folder in zip(_names(folders), folders)]
    kind = loaded[0].kind
    if other := next((run for run in loaded if run.kind != kind), None):
        raise UserError(
            f"{loaded[0].folder} has {kind.results} and {other.folder} has {other.kind.results}",
            "runs of one kind",
            setting="compare",
        )
    keys = sorted(set.intersection(*(set(run.records) for run in loaded)))
    keys = [key for key in keys if len({run.records[key].subject for run in loaded}) == 1]
    notes = _mismatches(loaded, keys)
    if not keys:
        raise UserError(
            f"none of the {kind.results} is in all of {', '.join(map(str, folders))}:"
            f" {'; '.join(notes)}",
            f"runs of the same {kind.entry_noun} file",
            setting="compare",
        )
    if any(path for log in record_types() for path in page_folder.glob(f"{log}*.jsonl")):
        raise UserError(
            f"{page_folder} is the folder of a run, whose gallery would be replaced",
            "another folder",
            setting="output",
        )
    with writing_to(page_folder, "output"):
        page_folder.mkdir(parents=True, exist_ok=True)
        _write(loaded, keys, notes, page_folder, seed, copy_images)
    return notes


def _load(name: str, folder: Path) -> _Run:
    if folder.exists() and not folder.is_dir():
        raise UserError("not a folder", "one that predict has written", at=folder)
    for kind in COMPARED:
        if records := [*kind.read(folder)]:
            break
    if kind is ImageRecord:
        files = image_files(folder) if folder.is_dir() else set()
        records = [record for record in records if record.file_name in files]
    if not records:
        raise UserError(
            "no results of a run", "a folder that predict or answer has written", at=folder
        )
    by_key = {record.key: record for record in records}
    settings = {name: _VARIES for record in records for name in record.settings}
    return _Run(name, folder, kind, by_key, {**settings, **common_settings(records)})


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or as much of their paths as distinguishes them."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError("a run is given twice", "different runs", setting="compare")
    by_depth = (["/".join(path[-depth:]) for path in parts] for depth in count(1))
    return next(names for names in by_depth if len(set(names)) == len(names))


def _mismatches(runs: list[_Run], keys: list[RequestKey]) -> list[str]:
    """Describe results that cannot be compared, and differences that bias the comparison."""
    notes = []
    shared = set(keys)
    results, subject = runs[0].kind.results, runs[0].kind.entry_noun
    texts = [{key[0]: record.subject for key, record in run.records.items()} for run in runs]
    for run, prompts in zip(runs[1:], texts[1:]):
        both = sorted(prompts.keys() & texts[0].keys())
        if other := [index for index in both if prompts[index] != texts[0][index]]:
            first = other[0]
            notes.append(
                f"{len(other)} {subject}s differ between {runs[0].name} and {run.name}: {subject}"
                f" {first} is {texts[0][first]!r:.60} and {prompts[first]!r:.60}; left out"
            )
    for run in runs:
        if left := len(run.records.keys() - shared):
            notes.append(
                f"{left} of {len(run.records)} {results} of {run.name} are not in all runs"
            )
    for name, what in (("seed", "noise"), ("model_path", "model")):
        values = [run.settings.get(name) for run in runs]
        if any(value != values[0] for value in values):
            told = ", ".join(f"{run.name} {run.settings.get(name)}" for run in runs)
            notes.append(f"{name} differs ({told}): the {results} are not of the same {what}")
    return notes


def _write(
    runs: list[_Run],
    keys: list[RequestKey],
    notes: list[str],
    output: Path,
    seed: int,
    copy_images: bool,
) -> None:
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [_shown(run, name) for run in runs] for name in names}
    differences = {
        name: value for name, value in values.items() if any(v != value[0] for v in value)
    }
    if runs[0].kind is AnswerRecord:
        answers = [AnswerRun(run.name, run.folder, run.records) for run in runs]
        shared: dict[str, Any] = {"notes": notes, "copy_images": copy_images}
        write_answer_pages(output, answers, keys, settings=[*differences.items()], **shared)
        return
    rows = {
        key: [_address(run, number, key, output, copy_images) for number, run in enumerate(runs)]
        for key in keys
    }
    prompts = []
    for index, group in groupby(keys, key=lambda key: key.entry_index):
        images = list(group)
        first = runs[0].records[images[0]]
        prompts.append(
            {
                "index": index,
                "text": first.prompt,
                "metadata": first.metadata,
                "rows": [
                    {
                        "index": key.sample_index,
                        "files": rows[key],
                        "splits": _splits(
                            [run.folder / run.records[key].file_name for run in runs]
                        ),
                    }
                    for key in images
                ],
            }
        )
    shown = [{"name": run.name, "settings": run.settings} for run in runs]
    identity = json.dumps([shown, [prompt["text"] for prompt in prompts], list(rows.values())])
    write_page(
        output / "index.html",
        "compare.html",
        title=" / ".join(run.name for run in runs),
        runs=shown,
        num_images=len(keys),
        prompts=prompts,
        notes=notes,
        differences=differences,
        seed=seed,
        page_id=sha256(identity.encode()).hexdigest()[:16],
    )


def _address(run: _Run, number: int, key: RequestKey, output: Path, copy_images: bool) -> str:
    """Return an image's URL relative to the page: of a copy, or of the image itself."""
    file = run.records[key].file_name
    copy = f"images/{number}/{file}" if copy_images else None
    return image_address(run.folder / file, output, copy)


def _shown(run: _Run, name: str) -> Any:
    """Return a setting of a run, or a dash if it means nothing there."""
    is_off = run.settings.get("dola") is False and name in ONLY_WITH_DOLA
    return "–" if is_off else run.settings.get(name)


def _splits(images: Sequence[Path]) -> dict[str, int]:
    """Return where two images differ most, in percent of their width, for each pair of runs.

    Returns:
        By the pair's places, as "0-1"; nothing for two that are equal or cannot be read.
    """
    small = [_shrunk(image) for image in images]
    found = {}
    for (first, one), (second, other) in combinations(enumerate(small), 2):
        if one is None or other is None:
            continue
        columns = ImageChops.difference(one, other).resize((_COLUMNS, 1), Image.Resampling.BOX)
        weights = columns.tobytes()
        if total := sum(weights):
            middle = sum((place + 0.5) * weight for place, weight in enumerate(weights)) / total
            found[f"{first}-{second}"] = round(100 * middle / _COLUMNS)
    return found


def _shrunk(path: Path) -> Image.Image | None:
    """Return an image in grey and small, as fast as its format allows."""
    try:
        with Image.open(path) as image:
            image.draft("L", (_COLUMNS, _COLUMNS))
            return image.convert("L").resize((_COLUMNS, _COLUMNS), Image.Resampling.BOX)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None  # the browser shows that it is broken
