"""The records of rankings: one line per entry in ``ranks.jsonl``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_dola.data.question_file import pictures_of
from lit_dola.data.requests import ImageKey, rank_subject
from lit_dola.errors import UserError
from lit_dola.janus.files import read_json
from lit_dola.runs.answers import given_keys, own_keys
from lit_dola.runs.record_log import Record
from lit_dola.runs.records import Kind

_OWN = ("item_index", "pictures", "scores", "order", "settings")


@dataclass(frozen=True)
class RankRecord:
    """What a line of ``ranks.jsonl`` says."""

    item_index: int
    """Index of the entry in its file, from 0."""
    metadata: dict[str, Any]
    """The entry."""
    pictures: list[str]
    """The pictures, relative to the run's folder, with ``/``."""
    labels: list[str]
    scores: list[float | None]
    """One per label, or per picture if there are several; None: outside the head set."""
    order: list[int]
    """Places in ``scores``, best first."""
    settings: dict[str, Any]
    """Every setting that shaped the scores, and the versions of the packages."""

    @property
    def key(self) -> ImageKey:
        """The entry's index, and 0."""
        return ImageKey(self.item_index, 0)

    @property
    def subject(self) -> str:
        """The pictures and the labels."""
        return rank_subject(pictures_of(self.metadata), self.labels)

    def with_metadata(self, metadata: dict[str, Any]) -> "RankRecord":
        """Return the record with what the entry holds now."""
        return replace(self, metadata=metadata)

    @classmethod
    def from_line(cls, line: Record) -> "RankRecord":
        """Read a line."""
        own, metadata = own_keys(line, _OWN)
        return cls(metadata=metadata, labels=line["labels"], **own)

    def to_line(self) -> Record:
        """Return the line to write: the entry's keys, then ours."""
        own = {name: getattr(self, name) for name in _OWN}
        return {**given_keys(self.metadata, _OWN), "labels": self.labels, **own}


RANKS = Kind("ranks", "item", RankRecord.from_line)

BEST = "best.json"
"""The best image of each prompt of a run, in its folder."""


def best_files(folder: Path) -> set[str]:
    """Return the files of a run that are the best of their prompts, if it was ranked.

    Raises:
        UserError: If ``best.json`` is unusable.
    """
    prompts = read_json(folder / BEST).get("prompts", {})
    try:
        return {str(prompt["best"]) for prompt in prompts.values()}
    except (AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder / BEST}: not the best images of a run; delete it, or rank the run again"
        ) from error
