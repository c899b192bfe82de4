"""Records of rankings: one line per item in ``ranks.jsonl``."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_dola.data.columns import REST, SHARED
from lit_dola.data.pictures import Picture, digest_of
from lit_dola.data.question_file import pictures_of
from lit_dola.data.requests import RankRequest, rank_subject
from lit_dola.errors import UserError
from lit_dola.janus.files import read_json
from lit_dola.runs.records import RunRecord

BEST = "best.json"
"""The best image of each prompt of a run, in its folder."""


@dataclass(frozen=True)
class RankRecord(RunRecord):
    """A line of ``ranks.jsonl``: a ranking."""

    log = "ranks"
    results = "rankings"
    entry_noun = "item"
    key_columns = ("item_index",)

    metadata: dict[str, Any] = field(metadata=REST)
    """The entry of the item file."""
    labels: list[str] = field(metadata=SHARED)
    item_index: int
    """Index of the entry in its file, from 0."""
    pictures: list[str]
    """The pictures, relative to the run's folder, with ``/``."""
    scores: list[float | None]
    """One per label, or per picture if there are several; None: outside the head set."""
    order: list[int]
    """Positions in ``scores``, best first."""
    settings: dict[str, Any]
    """Every setting that shaped the scores, and the versions of the packages."""
    digests: list[str] | None = None
    """Of the pictures' files, see :func:`lit_dola.data.pictures.digest_of`."""

    @classmethod
    def of(
        cls,
        request: RankRequest,
        scores: list[float | None],
        order: list[int],
        settings: dict[str, Any],
        name_of: Callable[[Picture], str],
    ) -> "RankRecord":
        """Return the record of a ranking; arguments as the fields and as for an answer."""
        names, labels = [*map(name_of, request.pictures)], [*request.labels]
        entry = request.entry
        digests = [*map(digest_of, request.pictures)]
        return cls(entry.metadata, labels, entry.index, names, scores, order, settings, digests)

    @property
    def subject(self) -> str:
        """The pictures and the labels."""
        return rank_subject(pictures_of(self.metadata), self.labels)


def best_files(folder: Path) -> set[str]:
    """Return the files of a run that are the best of their prompts, if it was ranked."""
    prompts = read_json(folder / BEST).get("prompts", {})
    try:
        return {str(prompt["best"]) for prompt in prompts.values()}
    except (AttributeError, TypeError, KeyError) as error:
        raise UserError(
            "not the best images of a run; delete it, or rank the run again", at=folder / BEST
        ) from error
