"""The records of a run: one JSON line per image in ``metadata.jsonl``, or per failure.

Each rank appends to its own ``metadata.{rank}.jsonl``; the first rank merges them into
``metadata.jsonl``.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_dola.data.old_names import rename_settings
from lit_dola.data.requests import ImageKey
from lit_dola.errors import UserError
from lit_dola.runs.files import write_atomically

Record = dict[str, Any]
"""A line as it is written."""

_KEYS = {"prompt", "prompt_index", "image_index"}
"""Keys of every line: the prompt and image that it is about."""


@dataclass(frozen=True)
class ImageRecord:
    """What a line of ``metadata.jsonl`` says about an image."""

    file: str
    """Path of the image, relative to the run's folder, with ``/``."""
    prompt: str
    prompt_index: int
    image_index: int
    settings: dict[str, Any]
    """Every setting that shaped the image, and the versions of the packages."""
    metadata: dict[str, Any]
    """Everything else in the prompt file's entry."""
    inspection: str | None = None
    """Path of the inspection's plot, likewise relative."""

    @property
    def key(self) -> ImageKey:
        """Prompt index and image index."""
        return ImageKey(self.prompt_index, self.image_index)

    @classmethod
    def from_line(cls, line: Record) -> "ImageRecord":
        """Read a line, also one written when settings had older names."""
        own = ("file", "prompt", "prompt_index", "image_index", "metadata", "inspection")
        settings = {name: value for name, value in line.items() if name not in own}
        return cls(
            line.get("file", ""),
            line["prompt"],
            line["prompt_index"],
            line["image_index"],
            rename_settings(settings),
            line.get("metadata", {}),
            line.get("inspection"),
        )

    def provenance(self) -> Record:
        """Return what an image file carries about itself: everything but the entry's metadata."""
        return {
            "file": self.file,
            "prompt": self.prompt,
            "prompt_index": self.prompt_index,
            "image_index": self.image_index,
            **self.settings,
        }

    def to_line(self) -> Record:
        """Return the line to write."""
        line = {**self.provenance(), "metadata": self.metadata}
        return line if self.inspection is None else {**line, "inspection": self.inspection}


def read_images(folder: Path) -> Iterator[ImageRecord]:
    """Yield the records of a run's images, in the order of its log.

    Raises:
        UserError: If a line is not the record of an image.
    """
    return map(ImageRecord.from_line, RecordLog(folder, "metadata").records())


def common_settings(records: Iterable[ImageRecord]) -> dict[str, Any]:
    """Return the settings that are the same in all records."""
    common: dict[str, Any] | None = None
    for record in records:
        if common is None:
            common = record.settings
        elif common.items() != record.settings.items():
            common = {
                name: value
                for name, value in common.items()
                if name in record.settings and record.settings[name] == value
            }
    return common or {}


class RecordLog:
    """The JSON Lines files of one kind in a run's folder: one per rank, and their merged file.

    Args:
        folder: Folder of the run.
        name: ``metadata`` or ``errors``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.jsonl"

    def of_rank(self, rank: int) -> Path:
        """Return the file that a rank appends to."""
        return self.path.with_suffix(f".{rank}.jsonl")

    def read(self) -> Iterator[tuple[Record, bytes]]:
        """Yield records and their lines, skipping lines torn by a power cut.

        Raises:
            UserError: If a line is not the record of an image or prompt.
        """
        # The merged file comes last: lines that another run is merging now are found there.
        for path in (*self._parts(), self.path):
            with suppress(FileNotFoundError), path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        record = json.loads(line)
                    except ValueError:
                        continue
                    if not isinstance(record, dict) or not record.keys() >= _KEYS:
                        raise UserError(
                            f"{path}: line {number}: not the record of an image; expected the"
                            " folder of a run, or an empty one"
                        )
                    yield record, line.rstrip(b"\n") + b"\n"

    def records(self) -> Iterator[Record]:
        """Yield the records alone, see :meth:`read`."""
        return (record for record, _ in self.read())

    def merge(self, keep: Callable[[Record], bool] = lambda record: True) -> int:
        """Merge all files into one, sorted, with one line per image.

        Args:
            keep: Whether to keep a record.

        Returns:
            The number of lines.
        """
        parts = self._parts()
        lines = {_place(record): line for record, line in self.read() if keep(record)}
        if lines:
            write_atomically(self.path, (lines[place] for place in sorted(lines)))
        else:
            parts.append(self.path)
        for part in parts:
            part.unlink(missing_ok=True)
        return len(lines)

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.*.jsonl"))


def _place(record: Record) -> tuple[int, int]:
    """Sort key of a line: by prompt and image; a line about a whole prompt comes first."""
    image_index = record["image_index"]
    return record["prompt_index"], -1 if image_index is None else image_index
