"""The JSON Lines files of a run: each rank appends to its own, and the first rank merges them."""

import json
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lit_dola.data.entry_file import no_garbage_collection, refuse_constant
from lit_dola.errors import UserError
from lit_dola.runs.files import to_json, write_atomically

Record = dict[str, Any]
"""A line as it is written."""

_LARGEST = 2**63
"""What no index reaches."""
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
_CHUNK = 1 << 20
_decode = json.JSONDecoder(parse_constant=refuse_constant).decode


class _Line(NamedTuple):
    """A line that holds a record, and where it is."""

    record: Record
    content: bytes
    file: int
    """Which of the log's files holds it."""
    offset: int


class RecordLog:
    """The JSON Lines files of one kind in a run's folder: one per rank, and their merged file.

    Args:
        folder: Folder of the run.
        name: ``metadata``, ``answers``, ``ranks`` or ``errors``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.jsonl"
        self._types = _TYPES[name]

    def of_rank(self, rank: int, run: str) -> Path:
        """Return the file that a rank of a run appends to; ``run`` is the token of its claim."""
        return self.path.with_suffix(f".{rank}.{run}.jsonl")

    def read(self) -> Iterator[Record]:
        """Yield the records, skipping lines torn by a power cut.

        Raises:
            UserError: If a line is not such a record.
        """
        return (line.record for line in self._lines(self._files()))

    def merged(self, start: int = 0, end: int | None = None) -> Iterator[tuple[Record, bytes]]:
        """Yield the records of the merged file, and their lines.

        Args:
            start: Byte of the file to start at, the beginning of a line.
            end: Byte to end at; None: the end of the file.

        Raises:
            UserError: If a line is not such a record.
        """
        for line in self._lines([self.path], start):
            if end is not None and line.offset >= end:
                return
            yield line.record, line.content

    def exists(self) -> bool:
        """Return whether there is any such file."""
        return self.path.exists() or bool(self._parts())

    def count(self) -> int:
        """Return the number of lines, without reading what they say."""
        count = 0
        for path in self._files():
            with suppress(FileNotFoundError):
                count += count_lines(path)[0]
        return count

    def write(self, records: Iterable[Record]) -> None:
        """Write the merged file of a run that is made at once.

        Raises:
            OSError: If it cannot be written.
        """
        write_atomically(self.path, map(to_json, records))

    def merge(
        self,
        keep: Callable[[Record], Record | None] = lambda record: record,
        living: Container[str] = (),
    ) -> int:
        """Merge all files into one, sorted, with one line per result; one process at a time.

        Memory holds where each line is, in 24 bytes, not the lines. If the merged file is all that
        there is, and nothing of it changes, it is not written again.

        Args:
            keep: Returns the record as it is to be written; None drops it.
            living: Runs that still append to their files, which are read but not deleted.

        Returns:
            The number of lines.
        """
        files = self._files()
        ended = [part for part in self._parts() if part.suffixes[-2][1:] not in living]
        merged = len(files) - 1
        found, changed = _Places(), dict[int, bytes]()
        last, size = (-1, -2), 0
        is_merged = True
        with no_garbage_collection():
            for line in self._lines(files):
                kept = keep(line.record)
                is_same = kept is line.record
                if kept is not None:
                    place = _place(kept)
                    if not is_same:
                        changed[len(found)] = to_json(kept)
                    found.add(place, line.offset * len(files) + line.file)
                    is_merged &= place > last
                    last = place
                is_merged &= is_same and line.file == merged and line.offset == size
                size += len(line.content)
        count = len(found)
        if not count:
            ended.append(self.path)
        elif not (is_merged and self.path.stat().st_size == size):
            order = found.in_order()
            count = len(order)
            write_atomically(self.path, _copied(files, order, found.where, changed))
        for part in ended:
            part.unlink(missing_ok=True)
        return count

    def _lines(self, files: list[Path], start: int = 0) -> Iterator[_Line]:
        for place, path in enumerate(files):
            offset = start
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(start)
                for number, line in enumerate(file, start=1):
                    began, offset = offset, offset + len(line)
                    try:
                        record = _decode(line.decode())
                    except ValueError:
                        continue
                    except RecursionError:
                        record = None
                    if not self._is_record(record):
                        raise UserError(
                            f"{path}: line {number}: not a record of a run; expected the folder of"
                            " a run, or an empty one"
                        )
                    yield _Line(record, line, place, began)

    def _is_record(self, line: Any) -> bool:
        """Return whether a line is a record of this log."""
        if not isinstance(line, dict):
            return False
        for key, allowed in self._types.items():
            value = line.get(key)
            if type(value) not in allowed or (type(value) is int and abs(value) >= _LARGEST):
                return False
        return True

    def _files(self) -> list[Path]:
        # The merged file comes last: lines that another run is merging now are found there.
        return [*self._parts(), self.path]

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.*.jsonl"))


def count_lines(path: Path, start: int = 0) -> tuple[int, int]:
    """Return the number of lines of a file that end after a byte, and where the file ends.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    lines, end = 0, start
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            lines += chunk.count(b"\n")
            end += len(chunk)
    return lines, end


class _Places:
    """Which results lines are about, and where they lie, as numbers in a row."""

    def __init__(self) -> None:
        self.prompts, self.images, self.where = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self.where)

    def add(self, place: tuple[int, int], where: int) -> None:
        """Add a line: the key that it sorts by, and its offset and file in one number."""
        self.prompts.append(place[0])
        self.images.append(place[1])
        self.where.append(where)

    def in_order(self) -> Sequence[int]:
        """Return the lines by their keys, the last one of each key, as indices."""
        import numpy as np  # only where something changes: ``status`` starts without it

        prompts, images = np.asarray(self.prompts), np.asarray(self.images)
        order = np.lexsort((np.arange(len(self)), images, prompts))
        last = np.ones(len(order), dtype=bool)
        last[:-1] = (np.diff(prompts[order]) != 0) | (np.diff(images[order]) != 0)
        return array("q", order[last].tobytes())


def _copied(
    files: list[Path], order: Sequence[int], where: Sequence[int], changed: Mapping[int, bytes]
) -> Iterator[bytes]:
    """Yield lines in an order: as they lie in the files, or as they are to be now."""
    with ExitStack() as stack:
        opened: list[BinaryIO | None] = []
        for path in files:
            try:
                opened.append(stack.enter_context(path.open("rb")))
            except FileNotFoundError:
                opened.append(None)
        for line in order:
            if line in changed:
                yield changed[line]
                continue
            offset, number = divmod(where[line], len(files))
            file = opened[number]
            assert file is not None
            file.seek(offset)
            yield file.readline().rstrip(b"\n") + b"\n"


def _place(record: Record) -> tuple[int, int]:
    """Sort key of a line: by prompt and image; a line about a whole prompt comes first."""
    for index in ("question_index", "item_index"):
        if index in record:
            return record[index], 0
    image_index = record["image_index"]
    return record["prompt_index"], -1 if image_index is None else image_index
