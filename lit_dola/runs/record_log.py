"""JSON Lines files of a run: each rank appends to its own, and the first rank merges them."""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lit_dola.collector import no_garbage_collection
from lit_dola.data.columns import Line, LogRecord
from lit_dola.data.entry_file import refuse_constant
from lit_dola.errors import UserError
from lit_dola.runs.files import to_json, write_atomically

_CHUNK = 1 << 20
_decode = json.JSONDecoder(parse_constant=refuse_constant).decode


class _Line(NamedTuple):
    """A line and its place."""

    record: Line
    is_former: bool
    """Set if the line is one of an earlier version, and the record is as it is written now."""
    content: bytes
    file: int
    """Number of the log's file that holds it."""
    offset: int


class RecordLog:
    """The JSON Lines files of one kind of records: one per rank, and their merged file."""

    def __init__(self, folder: Path, kind: type[LogRecord]) -> None:
        self.path = folder / f"{kind.log}.jsonl"
        self._kind = kind

    def of_rank(self, rank: int, run: str) -> Path:
        """Return the file that a rank of a run appends to, by the token of the run's claim."""
        return self.path.with_suffix(f".{rank}.{run}.jsonl")

    def read(self) -> Iterator[Line]:
        """Yield the records, skipping lines torn by a power cut."""
        return (line.record for line in self._lines(self._files()))

    def merged(self, start: int = 0, end: int | None = None) -> Iterator[tuple[Line, bytes]]:
        """Yield the records of the merged file, and their lines.

        Args:
            start: Byte of the file to start at, the beginning of a line.
            end: Byte to end at; None: the end of the file.
        """
        for line in self._lines([self.path], start):
            if end is not None and line.offset >= end:
                return
            yield line.record, line.content

    def is_merged(self) -> bool:
        """Return whether the merged file is all that there is, as after a run that has ended."""
        return self.path.exists() and not self._parts()

    def exists(self) -> bool:
        """Return whether there is any such file."""
        return self.path.exists() or bool(self._parts())

    def count(self) -> int:
        """Return the number of lines, without parsing them."""
        count = 0
        for path in self._files():
            with suppress(FileNotFoundError):
                count += count_lines(path)[0]
        return count

    def write(self, records: Iterable[Line]) -> None:
        """Write the merged file of a run that is written at once."""
        write_atomically(self.path, map(to_json, records))

    def merge(self, keep: Callable[[Line], Line | None] = lambda line: line) -> int:
        """Merge all files into one, sorted, with one line per result; one process at a time.

        Memory holds where each line is, in 24 bytes, not the lines. If the merged file is all that
        there is, and nothing of it changes, it is not written again.

        Args:
            keep: Returns the line to write; None drops it.

        Returns:
            The number of lines.
        """
        files, ended = self._files(), self._parts()
        merged = len(files) - 1
        found, changed = _Places(), dict[int, bytes]()
        last, size = (-1, -2), 0
        is_merged = True
        with no_garbage_collection():
            for line in self._lines(files):
                kept = keep(line.record)
                is_same = kept is line.record and not line.is_former
                if kept is not None:
                    place = self._kind.place_of(kept)
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
                        found = _decode(line.decode())
                    except ValueError:
                        continue
                    except RecursionError:
                        found = None
                    record = self._kind.up_to_date(found)
                    if not self._kind.is_line(record):
                        raise UserError(
                            f"line {number}: not a record of a run",
                            "the folder of a run, or an empty one",
                            at=path,
                        )
                    yield _Line(record, record is not found, line, place, began)

    def _files(self) -> list[Path]:
        # The merged file comes last: lines that the run is merging now are found there.
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
    """Keys of lines and their offsets, as arrays of numbers."""

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
