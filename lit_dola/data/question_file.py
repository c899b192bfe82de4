"""Reading question files."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_dola.data.entry_file import (
    check_writable,
    kind_of,
    make_entries,
    read_entries,
    some_names,
)
from lit_dola.data.pictures import InlinePicture, Picture, check_picture
from lit_dola.data.question_forms import QuestionForms, read_mme
from lit_dola.data.requests import Entry, Failure
from lit_dola.errors import UserError

_ADDRESS = re.compile(r"(https?|ftp|s3|gs):.{0,40}", re.IGNORECASE | re.DOTALL)
QUESTION_KEYS = ("question", "text", "prompt")
"""Keys that may hold an entry's question; the first one found counts."""


class Question(NamedTuple):
    """One entry of a question file."""

    entry: Entry
    """Its text is the question, its metadata the whole entry."""
    pictures: tuple[Picture, ...]
    names: tuple[str, ...]
    """The pictures as the entry names them."""


def read_questions(
    path: Path, image_dir: Path | None = None, skipped: list[Failure] | None = None
) -> list[Question]:
    """Read a question file.

    Args:
        path: JSON (a list of objects) or JSON Lines, also in a ``.json`` file as POPE's are, or a
            table. Each entry has ``image``, a path or a list of paths, and ``question``, ``text``
            or ``prompt``. Also the files of :class:`QuestionForms`, and MME's folder.
        image_dir: Folder that paths of pictures are relative to; None: the file's own folder.
        skipped: Receives the entries that are not questions, or whose pictures are not there; if
            None, the first one is an error.

    Raises:
        UserError: If the file cannot be read, contains no question, or has a bad entry that is not
            skipped; the message names the file and the entry or line.

    Example:
        >>> questions = read_questions(Path("coco_pope_random.json"), Path("val2014"))
    """
    if not path.is_dir():
        folder = path.parent if image_dir is None else image_dir
        return read_entries(path, _question_of(path, folder), skipped, pictures=True)
    make = _question_of(path, path if image_dir is None else image_dir)
    try:
        return make_entries((read_mme(path, image_dir), lambda entry, where: entry), make, skipped)
    except UserError as error:
        raise error.within(path) from error.__cause__


def _question_of(path: Path, folder: Path) -> Callable[[int, Any], Question]:
    checked, forms = CheckedPictures(folder), QuestionForms(path)

    def make(index: int, entry: Any) -> Question:
        entry = forms.convert(entry)
        if not isinstance(entry, dict):
            raise UserError(f"found {kind_of(entry)}", "an object with image and question")
        text = question_of(entry)
        entry, pictures, names = checked.of(entry)
        check_writable("the entry", entry)
        return Question(Entry(index, text, entry), pictures, names)

    return make


Pictured = tuple[dict[str, Any], tuple[Picture, ...], tuple[str, ...]]
"""An entry, its pictures, and their names in it."""


class CheckedPictures:
    """Pictures of a folder, each checked once.

    Args:
        folder: Folder that names of pictures are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: set[Path] = set()
        self._inline: dict[str, InlinePicture] = {}
        """By the ``index`` of their entries, to which others of MMBench refer."""

    def of(self, entry: Mapping[str, Any]) -> Pictured:
        """Return an entry with names in place of the pictures that it contains, and its pictures.

        Raises:
            UserError: If a picture is missing or not one.
        """
        given = pictures_of(entry)
        pictures = tuple(self._picture(name, str(entry.get("index"))) for name in given)
        names = tuple(
            it.name if isinstance(it, InlinePicture) else name for it, name in zip(pictures, given)
        )
        image = [*names] if isinstance(entry["image"], list) else names[0]
        return {**entry, "image": image}, pictures, names

    def of_one(self, entry: Mapping[str, Any]) -> Pictured:
        """Return the same of an entry that is about one picture.

        Raises:
            UserError: As :meth:`of`, or if there are several.
        """
        if (count := len(pictures_of(entry))) > 1:
            raise UserError(f"image is a list of {count}", "one path")
        return self.of(entry)

    def _picture(self, name: str, index: str) -> Picture:
        if inline := InlinePicture.parse(name):
            self._inline.setdefault(index, inline)
            return inline
        return self._inline.get(name) or self.paths([name])[0]

    def paths(self, names: Sequence[str]) -> tuple[Path, ...]:
        """Return the paths of pictures."""
        paths = tuple(self.folder / name for name in names)
        for path in paths:
            if path not in self._checked:
                check_picture(path)
                self._checked.add(path)
        return paths


def question_of(entry: Mapping[str, Any]) -> str:
    """Return the question of an entry."""
    key = next((key for key in QUESTION_KEYS if key in entry), None)
    if key is None:
        raise UserError(
            f"no question among {some_names(entry) or 'no keys'}",
            f"one of the keys {', '.join(QUESTION_KEYS)}",
        )
    text = entry[key]
    if not isinstance(text, str):
        raise UserError(f"{key} is {kind_of(text)}", "a string")
    if not text.strip():
        raise UserError(f"{key} is empty", "a text")
    return text.strip()


def pictures_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the pictures of an entry, as it names them."""
    if "image" not in entry:
        raise UserError(
            f"no image among {some_names(entry) or 'no keys'}",
            "the key image, a path or a list of paths",
        )
    given = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    if not given:
        raise UserError("image is an empty list", "at least one path")
    for name in given:
        if not isinstance(name, str) or not name.strip():
            found = "empty" if name == "" else kind_of(name)
            raise UserError(f"image is {found}", "a path or a list of paths")
        if address := _ADDRESS.match(name):
            raise UserError(f"image is {address[0]}…", "a path or base64: nothing is fetched")
    return tuple(given)
