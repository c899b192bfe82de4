"""What a run says about each of its results, as in ``metadata.jsonl``: one record per result."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lit_dola import __version__
from lit_dola.data.old_names import rename_settings
from lit_dola.data.requests import ImageKey
from lit_dola.runs.record_log import RESULTS, Record, RecordLog

ONLY_WITH_DOLA = ("alpha", "strength", "layer_ratio", "layer", "mid_norm", "apc")
"""Settings that mean nothing where DoLa is off."""


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
        return map(self.from_line, RecordLog(folder, self.log).read())


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
        settings = {name: value for name, value in line.items() if name not in _OWN}
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


_OWN = {field.name for field in fields(ImageRecord)} - {"settings"}
IMAGES = Kind("metadata", "prompt", ImageRecord.from_line)


def versions() -> dict[str, str]:
    """Return the versions of the packages that shape a result."""
    packages = {name: version(name) for name in ("torch", "transformers", "lightning")}
    return {"lit_dola": __version__, **packages}


def common_settings(records: Iterable[RunRecord]) -> dict[str, Any]:
    """Return the settings that are the same in all records."""
    common: dict[str, Any] | None = None
    for record in records:
        if common is None:
            common = record.settings
        elif common != record.settings:
            common = {
                name: value
                for name, value in common.items()
                if name in record.settings and record.settings[name] == value
            }
    return common or {}
