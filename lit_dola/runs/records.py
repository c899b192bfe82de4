"""The records of a run: one JSON line per result, as in ``metadata.jsonl``, or per failure.

Each rank of each run appends to a file of its own, ``metadata.{rank}.{run}.jsonl``; the first rank
merges them into ``metadata.jsonl``.
"""

import json
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lit_dola.data.old_names import rename_settings
from lit_dola.data.prompt_file import refuse_constant
from lit_dola.data.requests import ImageKey
from lit_dola.errors import UserError
from lit_dola.runs.files import to_json, write_atomically

Record = dict[str, Any]
"""A line as it is written."""

_TYPES: dict[str, dict[str, set[type]]] = {
    "metadata": {
        "file": {str, type(None)},
        "prompt": {str},
        "prompt_index": {int},
        "image_index": {int},
        "metadata": {dict, type(None)},
        "inspection": {str, type(None)},
        "forwards": {int, type(None)},
        "at_once": {int, type(None)},
    },
    "answers": {
        "question_index": {int},
        "pictures": {list},
        "answer": {str},
        "tokens": {list},
        "settings": {dict},
    },
    "ranks": {
        "item_index": {int},
        "pictures": {list},
        "labels": {list},
        "scores": {list},
        "order": {list},
        "settings": {dict},
    },
    "errors": {
        "prompt": {str, type(None)},
        "prompt_index": {int},
        "image_index": {int, type(None)},
    },
}
"""Types of a record's keys, by log; None also stands for a key that is not there."""
RESULTS = {"metadata": "images", "answers": "answers", "ranks": "rankings"}
"""Logs of results, and what the results are called."""


class RunRecord(Protocol):
    """What a record says, whatever the task."""

    @property
    def key(self) -> ImageKey:
        """Which result of the run it is."""

    @property
    def subject(self) -> str:
        """What the result is about, see :class:`lit_dola.data.requests.Request`."""

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that shaped the result, and the versions of the packages."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What else the entry of the result holds."""

    def with_metadata(self, metadata: dict[str, Any]) -> "RunRecord":
        """Return the record with what the entry holds now."""

    def to_line(self) -> Record:
        """Return the line to write."""


R = TypeVar("R", bound=RunRecord)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """A kind of results, and where their records are."""

    log: str
    """Name of the log, without its suffix."""
    subject: str
    """What one of them is about."""
    from_line: Callable[[Record], R]
    """Reads a line of the log."""

    @property
    def results(self) -> str:
        """What the results are called."""
        return RESULTS[self.log]

    def read(self, folder: Path) -> Iterator[R]:
        """Yield the records of a folder, in the order of its log.

        Raises:
            UserError: If a line is no such record.
        """
        return map(self.from_line, RecordLog(folder, self.log).records())


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
    forwards: int | None = None
    """Passes that its tokens took after the prefill, with speculative decoding."""
    at_once: int | None = None
    """Images decoded at once, if its batch was divided because it did not fit into memory."""

    @property
    def key(self) -> ImageKey:
        """Prompt index and image index."""
        return ImageKey(self.prompt_index, self.image_index)

    @property
    def subject(self) -> str:
        """The prompt."""
        return self.prompt

    def with_metadata(self, metadata: dict[str, Any]) -> "ImageRecord":
        """Return the record with what the entry holds now."""
        return replace(self, metadata=metadata)

    @classmethod
    def from_line(cls, line: Record) -> "ImageRecord":
        """Read a line, also one written when settings had older names."""
        own = {field.name for field in fields(cls)} - {"settings"}
        settings = {name: value for name, value in line.items() if name not in own}
        return cls(
            line.get("file") or "",
            line["prompt"],
            line["prompt_index"],
            line["image_index"],
            rename_settings(settings),
            line.get("metadata") or {},
            line.get("inspection"),
            line.get("forwards"),
            line.get("at_once"),
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
        inspection = {"inspection": self.inspection} if self.inspection is not None else {}
        return {
            **self.provenance(),
            "metadata": self.metadata,
            **inspection,
            **self.how_it_went(),
        }

    def how_it_went(self) -> Record:
        """Return what is known about how the image was made, other than its settings."""
        known = {"forwards": self.forwards, "at_once": self.at_once}
        return {name: value for name, value in known.items() if value is not None}


IMAGES = Kind("metadata", "prompt", ImageRecord.from_line)


def common_settings(records: Iterable[RunRecord]) -> dict[str, Any]:
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
        name: ``metadata``, ``answers``, ``ranks`` or ``errors``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.jsonl"

    def of_rank(self, rank: int, run: str) -> Path:
        """Return the file that a rank of a run appends to; ``run`` is the token of its claim."""
        return self.path.with_suffix(f".{rank}.{run}.jsonl")

    def read(self) -> Iterator[tuple[Record, bytes]]:
        """Yield records and their lines, skipping lines torn by a power cut.

        Raises:
            UserError: If a line is not such a record.
        """
        # The merged file comes last: lines that another run is merging now are found there.
        for path in (*self._parts(), self.path):
            with suppress(FileNotFoundError), path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        record = json.loads(line, parse_constant=refuse_constant)
                    except ValueError:
                        continue
                    except RecursionError:
                        record = None
                    if not self._is_record(record):
                        raise UserError(
                            f"{path}: line {number}: not a record of a run; expected the folder of"
                            " a run, or an empty one"
                        )
                    yield record, line.rstrip(b"\n") + b"\n"

    def _is_record(self, line: Any) -> bool:
        """Return whether a line is a record of this log."""
        types = _TYPES[self.path.stem]
        return isinstance(line, dict) and all(
            type(line.get(key)) in allowed for key, allowed in types.items()
        )

    def records(self) -> Iterator[Record]:
        """Yield the records alone, see :meth:`read`."""
        return (record for record, _ in self.read())

    def exists(self) -> bool:
        """Return whether there is any such file."""
        return self.path.exists() or bool(self._parts())

    def count(self) -> int:
        """Return the number of lines, without reading what they say."""
        count = 0
        for path in (*self._parts(), self.path):
            with suppress(FileNotFoundError), path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    count += chunk.count(b"\n")
        return count

    def merge(
        self,
        keep: Callable[[Record], Record | None] = lambda record: record,
        living: Container[str] = (),
    ) -> int:
        """Merge all files into one, sorted, with one line per result; one process at a time.

        Args:
            keep: Returns the record as it is to be written; None drops it.
            living: Runs that still append to their files, which are read but not deleted.

        Returns:
            The number of lines.
        """
        ended = [part for part in self._parts() if part.suffixes[-2][1:] not in living]
        lines = {}
        for record, line in self.read():
            kept = keep(record)
            if kept is not None:
                lines[_place(kept)] = line if kept is record else to_json(kept)
        if lines:
            write_atomically(self.path, (lines[place] for place in sorted(lines)))
        else:
            ended.append(self.path)
        for part in ended:
            part.unlink(missing_ok=True)
        return len(lines)

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.*.jsonl"))


def _place(record: Record) -> tuple[int, int]:
    """Sort key of a line: by prompt and image; a line about a whole prompt comes first."""
    for index in ("question_index", "item_index"):
        if index in record:
            return record[index], 0
    image_index = record["image_index"]
    return record["prompt_index"], -1 if image_index is None else image_index
