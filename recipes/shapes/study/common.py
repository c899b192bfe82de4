"""Reading the evaluations of the study, and showing them as Markdown."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from lit_dola.messages import label
from lit_dola.reports.intervals import Estimate
from lit_dola.reports.scores import OVERALL, Score, rates
from lit_dola.runs.records import ImageRecord
from lit_dola.tasks.generate import LitDoLa

CHECKPOINT = "checkpoints/shapes-janus"
LENS = f"{CHECKPOINT}/lens.safetensors"
DEFAULTS = {
    "dola": True, "alpha": 0.1, "strength": 1.0, "mid_norm": False, "layer": 8, "apc": "cond",
    "temperature": 1.0, "contrast": "dola",
}  # fmt: skip
"""Settings that the tables leave out."""


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
        names = chain(["dola", "lens"], LitDoLa.recommendable)
        return {name: record.settings[name] for name in names if name != "layer_ratio"}

    @cached_property
    def scores(self) -> list[Score]:
        """The score of each image."""
        lines = (self.folder / "scores.jsonl").read_text("utf-8").splitlines()
        right = {line["file_name"]: line["score"] for line in map(json.loads, lines)}
        return [_score(record, right) for record in ImageRecord.read(self.folder)]

    @cached_property
    def rate(self) -> float:
        """The mean rate of the skills."""
        return rates(self.scores)[OVERALL].mean


def _score(record: ImageRecord, right: dict[str, float]) -> Score:
    skill = record.metadata["tag"]
    return Score(skill, record.prompt_index, record.image_index, right[record.file_name])


def variants_of(folder: Path) -> dict[str, Variant]:
    """Return the variants of an evaluation, by name, in its own order."""
    names = json.loads((folder / "report.json").read_text("utf-8"))["variants"]
    return {name: Variant(folder / name) for name in names}


def told(variant: Variant, leave_out: Sequence[str] = ()) -> str:
    """Return the settings that differ from the defaults of the program."""
    settings = variant.settings
    names, left_out = [*settings], {**DEFAULTS}
    if settings["lens"]:
        del left_out["strength"]
    if not settings["dola"]:
        names = ["cfg_weight", "temperature", "top_p", "top_k", "min_p", "entropy_temperature"]
    elif settings["contrast"] == "guide":
        names.remove("strength")
        names.remove("contrast")  # its beta is told
    else:
        names.remove("beta")
    told = [
        "lens" if name == "lens" else f"{name} {label(settings[name])}"
        for name in names
        if name not in leave_out
        and settings[name] is not None
        and (name not in left_out or settings[name] != left_out[name])
    ]
    return ", ".join(told)


def percent(estimate: Estimate, sign: str = "") -> str:
    """Return an estimate in percent, with its interval."""
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in estimate[:3])
    return f"{mean} ({low} to {high})"


def table(rows: Iterator[list[str]] | list[list[str]]) -> str:
    """Return rows, the head first, as a table of Markdown."""
    header, *rest = rows
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
