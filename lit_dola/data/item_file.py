"""Reading item files: pictures with labels to rank."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from lit_dola.data.columns import with_name
from lit_dola.data.entry_file import check_writable, kind_of, read_entries
from lit_dola.data.pictures import Picture
from lit_dola.data.question_file import CheckedPictures
from lit_dola.data.requests import Entry, Failure
from lit_dola.errors import UserError


class Item(NamedTuple):
    """One entry of an item file."""

    entry: Entry
    """Its metadata is the whole entry."""
    pictures: tuple[Picture, ...]
    names: tuple[str, ...]
    """The pictures as the entry names them."""
    labels: tuple[str, ...]


def read_items(
    path: Path,
    image_dir: Path | None = None,
    labels: Sequence[str] | None = None,
    skipped: list[Failure] | None = None,
) -> list[Item]:
    """Read an item file.

    Args:
        path: JSON (a list of objects) or JSON Lines, whatever its suffix. Each entry has ``image``,
            a path, and ``labels``, a list of texts.
        image_dir: Folder that paths of pictures are relative to; None: the file's own folder.
        labels: The labels of entries that have none of their own.
        skipped: Receives bad entries; if None, the first one is an error.

    Raises:
        UserError: If the file cannot be read, contains no item, or has a bad entry that is not
            skipped; the message names the file and the entry or line.

    Example:
        >>> items = read_items(Path("items.json"), labels=["a cat", "a dog"])
    """
    folder = path.parent if image_dir is None else image_dir
    return read_entries(path, _item_of(folder, labels), skipped, pictures=True)


def _item_of(folder: Path, common: Sequence[str] | None) -> Callable[[int, Any], Item]:
    checked = CheckedPictures(folder)

    def make(index: int, entry: Any) -> Item:
        if not isinstance(entry, dict):
            raise UserError(f"found {kind_of(entry)}", "an object with image and labels")
        labels = check_labels(entry.get("labels", common))
        entry, pictures, names = checked.of_one(entry)
        check_writable("the entry", entry)
        return Item(Entry(index, names[0], entry), pictures, names, labels)

    return make


def check_labels(labels: Any) -> tuple[str, ...]:
    """Check labels."""
    if labels is None:
        raise UserError("no labels", "the key labels, a list of texts, or data.labels")
    if not isinstance(labels, list | tuple):
        raise UserError(f"labels is {kind_of(labels)}", "a list of texts")
    if not labels:
        raise UserError("labels is an empty list", "at least one text")
    for label in labels:
        if not isinstance(label, str) or not label.strip():
            found = "empty" if isinstance(label, str) else kind_of(label)
            raise UserError(f"a label is {found}", "a text")
    return tuple(labels)


def read_run(path: Path, skipped: list[Failure] | None = None) -> list[Item]:
    """Read the records of a run's images: one item per prompt, whose text is its only label.

    Args:
        path: ``metadata.jsonl`` of the run.
        skipped: Receives prompts with a missing image; if None, the first one is an error.

    Raises:
        UserError: If the file cannot be read, or a line is not the record of an image.
    """
    images = sorted(read_entries(path, _image), key=lambda image: image[:2])
    checked = CheckedPictures(path.parent)
    items: list[Item] = []
    for index, group in groupby(images, key=lambda image: image[0]):
        found = list(group)
        prompt, names = found[0][2], tuple(image[3] for image in found)
        try:
            pictures = checked.paths(names)
        except UserError as error:
            reason = f"prompt {index}: {error}"
            if skipped is None:
                raise UserError(f"{reason}", at=path) from error
            skipped.append(Failure(index, None, prompt, reason))
            continue
        entry = {"prompt_index": index, "prompt": prompt, "image": list(names)}
        items.append(Item(Entry(index, prompt, entry), pictures, names, (prompt,)))
    return items


def _image(index: int, line: Any) -> tuple[int, int, str, str]:
    """Return a record's indices, its prompt and its file."""
    keys = {"prompt_index": int, "image_index": int, "prompt": str, "file_name": str}
    line = with_name(line, "file", "file_name")  # of an earlier version
    if not isinstance(line, dict) or any(
        type(line.get(key)) is not kind for key, kind in keys.items()
    ):
        raise UserError("not the record of an image", "metadata.jsonl of a run")
    return line["prompt_index"], line["image_index"], line["prompt"], line["file_name"]
