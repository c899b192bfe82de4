"""``python main.py evaluate``: the same prompts and noise under several variants, scored.

Each variant is a run of ``predict`` into its own folder, so an evaluation that was stopped
continues where it was.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from PIL import Image

from lit_dola.callbacks.run_writer import find_writer
from lit_dola.data.datamodule import PromptDataModule, shards_the_model
from lit_dola.data.requests import RunPlan
from lit_dola.errors import UserError, printable, require
from lit_dola.reports.contact_sheet import write_contact_sheet
from lit_dola.reports.export import Export, check_dpg, write_export
from lit_dola.reports.scores import Score, write_report
from lit_dola.runs.files import to_json, write_atomically
from lit_dola.runs.image_file import read_image
from lit_dola.runs.records import ImageRecord, read_images
from lit_dola.tasks.generate import LitDoLa
from lit_dola.tasks.variants import all_variants, make_variants

_COLUMNS = 14
"""Prompts on the contact sheet."""

Scorer = Callable[[Image.Image, dict[str, Any]], float]
"""Scores whether an image shows what its prompt asks for: 1 (or True), 0, or anything between.

Its arguments are the image as it was written, and the metadata of its entry in the prompt file. In
YAML: the ``class_path`` of a class whose objects can be called like this.
"""


class EvaluationTrainer(Trainer):
    """Lightning's trainer with ``evaluate``."""

    def evaluate(
        self,
        model: LitDoLa,
        datamodule: PromptDataModule,
        variants: dict[str, dict[str, Any]] | None = None,
        grid: dict[str, list[Any]] | None = None,
        scorer: Scorer | None = None,
        export: Export | None = None,
        reference: str | None = None,
    ) -> None:
        """Generate under each variant, then score the images or export them for a benchmark.

        Args:
            model: The model, with the settings that all variants share.
            datamodule: The prompts; the key ``tag`` of an entry, if present, is its skill.
            variants: What each variant changes of the model's settings, by the variant's name, as
                in ``{baseline: {dola: false}, sharp: {alpha: 0.3}}``.
            grid: Values of some settings, as in ``{alpha: [0.02, 0.1], strength: [0, 0.5, 1]}``;
                every combination is a further variant, named after what varies.
            scorer: Scores an image; null: no report is written.
            export: Benchmark whose folders the images are copied into,
                ``{output_dir}/{export}/{name}``: geneval or dpg.
            reference: Variant that the others are compared with, image by image; null: the first.

        Raises:
            UserError: If a variant changes an unknown setting, a run fails, or the report cannot be
                drawn.
        """
        if scorer:
            require("matplotlib", "scorer", extra="evaluation")
        models = make_variants(model, variants or {}, grid or {})
        reference = reference or next(iter(models))
        for name, changed in models.items():
            try:
                changed.check(datamodule.checkpoint)
            except UserError as error:
                raise UserError(f"variants.{name}: {error}") from error
        if export == "dpg":
            check_dpg(datamodule.read_prompts([]), model.parallel_size)
        if reference not in models:
            raise UserError(
                f"reference: {reference!r} is not a variant; expected one of {', '.join(models)}"
            )
        writer = find_writer(self)
        assert writer is not None
        folder = writer.output_dir
        runs: dict[str, _Run] = {}
        for name, changed in models.items():
            if hasattr(model, "janus") and not (model.quantize or shards_the_model(self)):
                changed.janus = model.janus  # loaded once
            model = changed
            writer.output_dir = folder / name
            self.predict(model, datamodule=datamodule, return_predictions=False)
            writer.check_complete(self)
            if self.is_global_zero:  # not folder / name: on_mismatch may have chosen another
                runs[name] = _read_run(writer.output_dir, datamodule.plan)
        if not self.is_global_zero:
            return
        try:
            for name, run in runs.items():
                if export:
                    write_export(export, run.folder, run.records, folder / export / name)
            scores = {name: _scores(run, scorer) for name, run in runs.items() if scorer}
            if scores:
                about = {"model": printable(model.model_path), "seed": model.hparams["seed"]}
                changes = all_variants(variants or {}, grid or {})
                write_report(folder, scores, reference, {**about, "variants": changes})
            _write_sheet(folder, runs, scores)
        except OSError as error:
            raise UserError(writer.cannot_write(error)) from error


class _Run(NamedTuple):
    """What one variant has made."""

    folder: Path
    records: list[ImageRecord]
    """Records of the images that were asked for, in the order of prompts and images."""


def _read_run(folder: Path, plan: RunPlan) -> _Run:
    """Read the records of the images that a run was asked for; its folder may hold more."""
    asked_for = {request.key for request in plan.asked_for}
    records = [record for record in read_images(folder) if record.key in asked_for]
    return _Run(folder, sorted(records, key=lambda record: record.key))


def _scores(run: _Run, scorer: Scorer) -> list[Score]:
    """Score a run's images, and write the scores to ``scores.jsonl``.

    Raises:
        UserError: If an image cannot be read or scored.
    """
    scores, lines = [], []
    for record in run.records:
        image = read_image(run.folder / record.file)
        try:
            right = float(scorer(image, record.metadata))
        except Exception as error:  # the user's own code
            raise UserError(
                f"scorer: {type(scorer).__name__} fails on {run.folder / record.file}, prompt"
                f" {record.prompt_index}: {type(error).__name__}: {error}; expected a number of any"
                " image and its prompt's metadata"
            ) from error
        if not math.isfinite(right):
            raise UserError(
                f"scorer: {type(scorer).__name__} returns {right} for {run.folder / record.file};"
                " expected a finite number"
            )
        skill = str(record.metadata.get("tag", "all"))
        scores.append(Score(skill, record.prompt_index, record.image_index, right))
        lines.append(to_json({"file": record.file, "score": right}))
    write_atomically(run.folder / "scores.jsonl", lines)
    return scores


def _write_sheet(folder: Path, runs: dict[str, _Run], scores: dict[str, list[Score]]) -> None:
    """Show the first image of a few prompts, spread over the prompt file, under each variant."""
    first = {
        name: {record.prompt_index: record for record in run.records if record.image_index == 0}
        for name, run in runs.items()
    }
    common = sorted(set.intersection(*(set(records) for records in first.values())))
    if not common:
        return
    shown = [
        common[place] for place in sorted({len(common) * c // _COLUMNS for c in range(_COLUMNS)})
    ]
    right = {
        name: {score.prompt_index: score.right >= 0.5 for score in found if score.image_index == 0}
        for name, found in scores.items()
    }
    some = next(iter(first.values()))
    write_contact_sheet(
        folder / "sheet.png",
        [some[prompt].prompt for prompt in shown],
        {
            name: [runs[name].folder / records[prompt].file for prompt in shown]
            for name, records in first.items()
        },
        {name: [found[prompt] for prompt in shown] for name, found in right.items()} or None,
    )
