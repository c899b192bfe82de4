"""Shards of runs, for training and for the hub: webdataset's tar files, and Parquet with pictures.

A shard is complete as soon as it has its name. A list of the shards that were written,
``.shards.json``, lets a second export resume, and delete stale shards of the first one.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

from tqdm import tqdm

from lit_dola.data.columns import Line
from lit_dola.errors import UserError
from lit_dola.messages import first_line
from lit_dola.runs.files import atomic_file, to_json, write_atomically
from lit_dola.runs.image_file import find_tokens, read_image_bytes, read_token_arrays
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import ImageRecord

_MANIFEST = ".shards.json"
_SHARD = re.compile(r"images-\d+\.tar|data/train-\d+-of-\d+\.parquet")
"""Names of shards of either form."""
_ROWS_AT_ONCE = 100
"""Images in memory at once, and in a row group of Parquet."""
_LINES_AT_ONCE = 10_000
"""Records in memory at once while columns are looked for."""


class Row(NamedTuple):
    """An image of a run that is exported."""

    run: Path
    number: int
    """Number of its run among those that are exported."""
    line: Line
    """Its record."""

    @property
    def file(self) -> Path:
        """The image."""
        return self.run / str(self.line["file_name"])

    def columns(self) -> Line:
        """Return the record, and the name of its run."""
        return {**self.line, "run": self.run.resolve().name}

    def content(self) -> bytes:
        """Read the image's file, see :func:`read_image_bytes`."""
        return read_image_bytes(self.file)


def rows_of(runs: Sequence[Path]) -> Iterator[Row]:
    """Yield the images of runs, reading their records as they are needed."""
    for number, run in enumerate(runs):
        for line, _ in RecordLog(run, ImageRecord).merged():
            yield Row(run, number, line)


def _batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rest = iter(rows)
    while found := [*islice(rest, size)]:
        yield found


class Shards(ABC):
    """A form of shards.

    Args:
        runs: Folders of runs.
    """

    name_of_shard: ClassVar[str]
    """Name of a shard, with its number and their count, from 0."""
    paths: ClassVar[str]
    """Pattern of their names, as the hub finds them."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self.runs = runs
        self.layout = ""
        """All that a shard's bytes depend on besides its images."""

    @abstractmethod
    def write(self, file: BinaryIO, rows: Sequence[Row]) -> None:
        """Write a shard."""


class WebDataset(Shards):
    """Tar files of ``webdataset``: per image ``.jpg``, ``.json``, ``.txt`` and its tokens."""

    name_of_shard = "images-{:06}.tar"
    paths = "*.tar"

    def write(self, file: BinaryIO, rows: Sequence[Row]) -> None:
        """Write a shard, whose bytes depend on its images alone."""
        from webdataset import TarWriter

        with TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
            for row in rows:
                tar.write(self._sample(row))

    def _sample(self, row: Row) -> dict[str, Any]:
        place = f"{row.line['prompt_index']:06}_{row.line['image_index']:03}"
        sample = {
            "__key__": f"{row.number:03}_{place}" if self.runs[1:] else place,
            row.file.suffix.removeprefix("."): row.content(),
            "json": to_json(row.columns()).rstrip(),
            "txt": row.line["prompt"].encode(),
        }
        if tokens := find_tokens(row.run, row.line["file_name"]):
            sample[tokens.suffix.removeprefix(".")] = tokens.read_bytes()
        return sample


class Parquet(Shards):
    """Parquet with the image as a feature of ``datasets``, every column, and perhaps the tokens."""

    name_of_shard = "data/train-{:05}-of-{:05}.parquet"
    paths = "data/*.parquet"

    def __init__(self, runs: Sequence[Path]) -> None:
        super().__init__(runs)
        firsts = [next(rows_of([run])) for run in runs]
        self.token_columns = [*dict.fromkeys(name for row in firsts for name in _tokens_of(row))]
        self.schema = self._schema()
        self.layout = str(self.schema)

    def _schema(self) -> Any:
        """Return the columns of all records, reading each once."""
        import pyarrow as pa
        from datasets import Features, Image, List, Value

        found = pa.schema([])
        for rows in _batched(rows_of(self.runs), _LINES_AT_ONCE):
            try:
                lines = [row.columns() for row in rows]
                own = pa.Table.from_pylist(_union(lines)).schema
                found = pa.unify_schemas([found, own], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise UserError(
                    f"values of several types under one key: {first_line(error)}",
                    "one type per key in all entries of the prompt file, or webdataset",
                    setting="export parquet",
                ) from error
        kept = [it for it in found if not (pa.types.is_struct(it.type) and not it.type.num_fields)]
        kinds = {"tokens": "int32", "logprob": "float32", "sampled_logprob": "float32"}
        features = {
            "image": Image(),
            **Features.from_arrow_schema(pa.schema(kept)),
            **{name: List(Value(kinds[name])) for name in self.token_columns},
        }
        return Features(features).arrow_schema

    def write(self, file: BinaryIO, rows: Sequence[Row]) -> None:
        """Write a shard."""
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        with ParquetWriter(file, self.schema) as writer:
            for some in _batched(rows, _ROWS_AT_ONCE):
                content = [
                    {
                        "image": {"bytes": row.content(), "path": row.line["file_name"]},
                        **row.columns(),
                        **_tokens_of(row),
                    }
                    for row in some
                ]
                writer.write_table(pa.Table.from_pylist(content, schema=self.schema))


def _union(lines: list[Line]) -> list[Line]:
    """Give the first line every key: pyarrow finds columns in it alone."""
    return [{**dict.fromkeys(chain.from_iterable(lines)), **lines[0]}, *lines[1:]]


def _tokens_of(row: Row) -> dict[str, Any]:
    path = find_tokens(row.run, row.line["file_name"])
    return {} if path is None else read_token_arrays(path)


def write_shards(shards: Shards, folder: Path, images_per_shard: int) -> list[str]:
    """Write the shards that are not there yet, and delete those of an earlier export.

    Args:
        shards: The form, and the runs.
        folder: Folder to write to; must exist.
        images_per_shard: Images per shard; the last one has the rest.

    Returns:
        The names of all shards, relative to the folder.

    Raises:
        UserError: If an image is missing.
        OSError: If the folder cannot be written.
    """
    images = sum(RecordLog(run, ImageRecord).count() for run in shards.runs)
    count = -(-images // images_per_shard)
    before = _read_manifest(folder)
    written: dict[str, str] = {}
    groups = _batched(rows_of(shards.runs), images_per_shard)
    with tqdm(total=images, unit="image", disable=None, leave=False) as progress:
        for number, rows in enumerate(groups):
            name = shards.name_of_shard.format(number, count)
            path, digest = folder / name, _digest(rows, shards.layout)
            if before.get(name) != digest or not path.is_file():
                path.parent.mkdir(exist_ok=True)
                with atomic_file(path) as file:
                    shards.write(file, rows)
            written[name] = digest
            _write_manifest(folder, {**before, **written})
            progress.update(len(rows))
    for name in before.keys() - written.keys():
        if _SHARD.fullmatch(name):
            (folder / name).unlink(missing_ok=True)
    _write_manifest(folder, written)
    return [*written]


def _digest(rows: Sequence[Row], layout: str) -> str:
    digest = sha256(layout.encode())
    for row in rows:
        tokens = find_tokens(row.run, row.line["file_name"])
        digest.update(to_json(row.columns()) + str(tokens and tokens.name).encode())
    return digest.hexdigest()


def _read_manifest(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError):  # none, or damaged: everything is written again
        return {}
    return found if isinstance(found, dict) else {}


def _write_manifest(folder: Path, shards: dict[str, str]) -> None:
    write_atomically(folder / _MANIFEST, [json.dumps(shards, indent=1).encode()])
