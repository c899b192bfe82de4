"""Images of an evaluation: scoring, exporting, and showing them on a contact sheet."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from lit_dola.data.base import RequestDataModule
from lit_dola.data.prompts import PromptDataModule
from lit_dola.errors import UserError
from lit_dola.reports.contact_sheet import write_contact_sheet
from lit_dola.reports.export import Export, check_export, write_export
from lit_dola.reports.scores import Score
from lit_dola.reports.task_scores import skill_of
from lit_dola.runs.files import to_json, write_atomically
from lit_dola.runs.image_file import read_image
from lit_dola.runs.records import ImageRecord
from lit_dola.tasks.base import JanusModule
from lit_dola.tasks.generate import LitDoLa

_COLUMNS = 14
"""Prompts on the contact sheet."""
Scorer = Callable[[Image.Image, dict[str, Any]], float]
"""Scores whether an image shows what its prompt asks for: 1 (or True), 0, or anything between.

Its arguments are the image as it was written, and the metadata of its entry in the prompt file,
with the prompt under ``prompt``. In YAML: the ``class_path`` of a class whose objects can be called
like this, such as those of :mod:`lit_dola.evaluation.scorers`.
"""


class Run(NamedTuple):
    """The run of one variant."""

    folder: Path
    records: list[Any]
    """Records of the requested results, in the order of their keys."""


class ImageEvaluation(NamedTuple):
    """Scoring, export and contact sheet of an evaluation."""

    scorer: Scorer | None
    export: Export | None
    sheet: "Sheet"

    def check(self, model: JanusModule, data: RequestDataModule, task: str) -> None:
        """Check it before anything is generated."""
        if isinstance(model, LitDoLa):
            assert isinstance(data, PromptDataModule)
            if self.export:
                check_export(self.export, data.read_prompts([]), data.images)
            self.sheet.check(data, model.parallel_size)
            return
        for name in ("scorer", "export"):
            if getattr(self, name) is not None:
                raise UserError(f"the task {task} generates no images", "null", setting=name)

    def scores(self, runs: dict[str, Run], folder: Path) -> dict[str, list[Score]]:
        """Export the images and score them, each if asked for."""
        for name, run in runs.items():
            if self.export:
                write_export(self.export, run.folder, run.records, folder / self.export / name)
        scorer = self.scorer
        return {name: _scores(run, scorer) for name, run in runs.items()} if scorer else {}


def _scores(run: Run, scorer: Scorer) -> list[Score]:
    """Score a run's images, and write the scores to ``scores.jsonl``."""
    scores, lines = [], []
    for record in run.records:
        image = read_image(run.folder / record.file_name)
        try:
            right = float(scorer(image, {**record.metadata, "prompt": record.prompt}))
        except UserError:
            raise
        except Exception as error:  # the user's own code
            raise UserError(
                f"{type(scorer).__name__} fails on {run.folder / record.file_name}, prompt"
                f" {record.prompt_index}: {type(error).__name__}: {error}",
                "a number of any image and its prompt's metadata",
                setting="scorer",
            ) from error
        if not math.isfinite(right):
            raise UserError(
                f"{type(scorer).__name__} returns {right} for {run.folder / record.file_name}",
                "a finite number",
                setting="scorer",
            )
        scores.append(
            Score(skill_of(record.metadata), record.prompt_index, record.image_index, right)
        )
        lines.append(to_json({"file_name": record.file_name, "score": right}))
    write_atomically(run.folder / "scores.jsonl", lines)
    return scores


class Sheet(NamedTuple):
    """Content of the contact sheet."""

    prompts: list[int] | None
    """Prompts by their index; None: a few, spread over the file."""
    image: int
    """Index of the image of each."""

    def check(self, data: PromptDataModule, parallel_size: int) -> None:
        """Check that its images are asked for."""
        if self.image >= parallel_size:
            raise UserError(
                str(self.image),
                f"less than model.parallel_size, {parallel_size}: images are counted from 0",
                setting="sheet_image",
            )
        known = {prompt.index for prompt in data.read_prompts([])} if self.prompts else set()
        for prompt in self.prompts or ():
            if prompt not in known:
                raise UserError(
                    f"{prompt} is not a prompt of {data.prompt_json}",
                    "indices of its entries, from 0",
                    setting="sheet_prompts",
                )

    def write(self, path: Path, runs: dict[str, Run], scores: dict[str, list[Score]]) -> None:
        """Write the sheet: one row per variant, one column per prompt."""
        records = {
            name: {record.prompt_index: record for record in run.records if self._shows(record)}
            for name, run in runs.items()
        }
        common = sorted(set.intersection(*map(set, records.values())))
        if not common:
            return
        spread = sorted({len(common) * column // _COLUMNS for column in range(_COLUMNS)})
        shown = self.prompts or [common[place] for place in spread]
        shown = [prompt for prompt in shown if prompt in common]  # a skipped entry has no image
        right = {
            name: {score.prompt_index: score.right >= 0.5 for score in found if self._shows(score)}
            for name, found in scores.items()
        }
        some = next(iter(records.values()))
        write_contact_sheet(
            path,
            [some[prompt].prompt for prompt in shown],
            {
                name: [runs[name].folder / own[prompt].file_name for prompt in shown]
                for name, own in records.items()
            },
            {name: [found[prompt] for prompt in shown] for name, found in right.items()} or None,
        )

    def _shows(self, of: ImageRecord | Score) -> bool:
        return of.image_index == self.image
