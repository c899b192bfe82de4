"""Records of results: one line per result in a log such as ``metadata.jsonl``."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from lit_dola import __version__
from lit_dola.data.columns import REST, Line, LogRecord
from lit_dola.data.requests import ImageRequest, RequestKey
from lit_dola.runs.record_log import RecordLog

ONLY_WITH_DOLA = (
    "alpha", "strength", "layer_ratio", "layer", "mid_norm", "apc",
    "contrast", "beta", "lens", "lens_digest",
)  # fmt: skip
"""Settings without effect where DoLa is off."""


class RunRecord(LogRecord):
    """The record of a result, whatever the task; a subclass has the columns."""

    results: ClassVar[str]
    """Plural noun of the results."""
    entry_noun: ClassVar[str]
    """Noun of an entry of the file."""
    settings: dict[str, Any]
    """Every setting that shaped the result, and the versions of the packages."""
    metadata: dict[str, Any]
    """Other content of the result's entry."""
    digests: list[str] | None = None
    """Digests of the pictures that the result is about; None if there are none."""

    @property
    def key(self) -> RequestKey:
        """Key of the result within the run."""
        entry, *sample = (getattr(self, name) for name in self.key_columns)
        return RequestKey(entry, *(sample or [0]))

    @property
    def subject(self) -> str:
        """The content of the request, see :attr:`lit_dola.data.requests.Request.subject`."""
        raise NotImplementedError

    def with_metadata(self, metadata: dict[str, Any]) -> Self:
        """Return the record with the current metadata of its entry."""
        return replace(self, metadata=metadata)  # type: ignore[type-var]

    @classmethod
    def read(cls, folder: Path) -> Iterator[Self]:
        """Yield the records of a folder, in the order of its log."""
        return map(cls.from_line, RecordLog(folder, cls).read())


class RunSettings(NamedTuple):
    """Every setting that shapes the results of a run, in the order of a record."""

    model: Mapping[str, Any]
    batching: Mapping[str, Any]
    """Settings known once the model is loaded."""

    def with_file(self, **file: Any) -> dict[str, Any]:
        """Return all settings and the versions of the packages."""
        return {**self.model, **file, **self.batching, "versions": versions()}


class GeneratedLike(Protocol):
    """A generated image, as its record sees it."""

    @property
    def request(self) -> ImageRequest:
        """Its request."""

    @property
    def forwards(self) -> int | None:
        """As :attr:`ImageRecord.forwards`."""

    @property
    def at_once(self) -> int | None:
        """As :attr:`ImageRecord.at_once`."""


@dataclass(frozen=True)
class ImageRecord(RunRecord):
    """A line of ``metadata.jsonl``: an image."""

    log = "metadata"
    results = "images"
    entry_noun = "prompt"
    key_columns = ("prompt_index", "image_index")
    first_was = "file"

    file_name: str
    """Path of the image, relative to the run's folder, with ``/``: the name of the column in an
    imagefolder of Hugging Face's ``datasets``."""
    prompt: str
    prompt_index: int
    image_index: int
    settings: dict[str, Any] = field(metadata=REST)
    """Every setting that shaped the image, and the versions of the packages."""
    metadata: dict[str, Any]
    """Everything else in the prompt file's entry."""
    inspection: str | None = None
    """Path of the inspection's plot, likewise relative."""
    forwards: int | None = None
    """Passes that its tokens took after the prefill, with speculative decoding."""
    at_once: int | None = None
    """Images decoded at once, if its batch was divided because it did not fit into memory."""

    @classmethod
    def of(
        cls, image: GeneratedLike, settings: RunSettings, file: str = "", **of_file: Any
    ) -> "ImageRecord":
        """Return the record of an image.

        Args:
            image: The image.
            settings: Settings of its run.
            file: Path of its file, relative to the run's folder; empty if there is none yet.
            of_file: Settings of the file, e.g. its format.
        """
        request = image.request
        return cls(
            file,
            request.entry.text,
            *request.key,
            {**settings.with_file(**of_file), **request.own_settings},
            request.entry.metadata,
            forwards=image.forwards,
            at_once=image.at_once,
        )

    @classmethod
    def from_line(cls, line: Line) -> "ImageRecord":
        """Return the record of a line."""
        return super().from_line({**line, "metadata": _map_keys(line["metadata"], _original)})

    def to_line(self) -> Line:
        """Return the line of this record.

        A key of the entry such as ``file_name`` gets an underscore, because readers of an
        imagefolder would open the picture that it names.
        """
        line = super().to_line()
        return {**line, "metadata": _map_keys(line["metadata"], _harmless)}

    @property
    def subject(self) -> str:
        """The prompt."""
        return self.prompt

    def provenance(self) -> Line:
        """Return what an image file carries about itself: everything but the entry's metadata."""
        line = self.to_line()
        return {name: line[name] for name in line if name not in _NOT_IN_FILES}

    def how_it_went(self) -> Line:
        """Return what is known about the generation of the image, other than its settings."""
        known = {"forwards": self.forwards, "at_once": self.at_once}
        return {name: value for name, value in known.items() if value is not None}


_NAMES_A_PICTURE = re.compile(r"(.*_)?file_names?_*")


def _harmless(key: str) -> str:
    return f"{key}_" if _NAMES_A_PICTURE.fullmatch(key) else key


def _original(key: str) -> str:
    return key.removesuffix("_") if _NAMES_A_PICTURE.fullmatch(key) else key


def _map_keys(value: Any, rename: Callable[[str], str]) -> Any:
    """Rename the keys of all objects in a JSON value."""
    if isinstance(value, dict):
        return {rename(key): _map_keys(it, rename) for key, it in value.items()}
    return [_map_keys(it, rename) for it in value] if isinstance(value, list) else value


_NOT_IN_FILES = ("metadata", "inspection", "forwards", "at_once")


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that shape a result."""
    packages = {name: version(name) for name in ("torch", "transformers", "lightning")}
    return {"lit_dola": __version__, **packages}


def common_settings(records: Iterable[RunRecord]) -> dict[str, Any]:
    """Return the settings that are the same in all records."""
    common: dict[str, Any] | None = None
    for record in records:
        settings = record.settings
        if common is None:
            common = settings
        elif common != settings:
            common = {
                name: value
                for name, value in common.items()
                if name in settings and settings[name] == value
            }
    return common or {}
