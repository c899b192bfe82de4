"""Reading the evaluations of the study."""

import json
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from lit_dola.reports.scores import OVERALL, Score, rates
from lit_dola.runs.records import ImageRecord
from lit_dola.tasks.generate import LitDoLa


class Variant:
    """A variant that ``evaluate`` has scored.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that shapes the distribution, by name; ``layer`` is the one that was used."""
        record = next(iter(ImageRecord.read(self.folder)))
        names = chain(["dola"], LitDoLa.recommendable)
        return {name: record.settings[name] for name in names if name != "layer_ratio"}

    @cached_property
    def scores(self) -> list[Score]:
        """The score of each image."""
        lines = (self.folder / "scores.jsonl").read_text("utf-8").splitlines()
        right = {line["file"]: line["score"] for line in map(json.loads, lines)}
        return [_score(record, right) for record in ImageRecord.read(self.folder)]

    @cached_property
    def rate(self) -> float:
        """The mean rate of the skills."""
        return rates(self.scores)[OVERALL].mean


def _score(record: ImageRecord, right: dict[str, float]) -> Score:
    skill = record.metadata["tag"]
    return Score(skill, record.prompt_index, record.image_index, right[record.file])


def variants_of(folder: Path) -> dict[str, Variant]:
    """Return the variants of an evaluation, by name, in its own order."""
    names = json.loads((folder / "report.json").read_text("utf-8"))["variants"]
    return {name: Variant(folder / name) for name in names}
