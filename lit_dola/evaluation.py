"""``python main.py evaluate``: the same prompts and noise under several variants, scored.

Each variant is a run of ``predict`` into its own folder, so an evaluation that was stopped
continues where it was.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from PIL import Image

from lit_dola.callbacks.run_writer import find_writer
from lit_dola.data.datamodule import PromptDataModule, shards_the_model
from lit_dola.errors import UserError, require
from lit_dola.reports.contact_sheet import write_contact_sheet
from lit_dola.reports.export import Export, write_export
from lit_dola.reports.scores import Score, write_report
from lit_dola.runs.files import safe_name, write_atomically
from lit_dola.runs.records import ImageRecord, read_images
from lit_dola.tasks.generate import LitDoLa

SHARED = ("model_path", "roles", "backend", "quantize", "parallel_size", "images_per_batch", "seed")
"""Settings of the model that all variants of an evaluation share."""
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
        variants: dict[str, dict[str, Any]],
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
        reference = reference or next(iter(variants), "")
        models = _models(model, variants)
        if reference not in models:
            raise UserError(
                f"reference: {reference!r} is not a variant; expected one of {', '.join(models)}"
            )
        writer = find_writer(self)
        assert writer is not None
        folder = writer.output_dir
        runs: dict[str, list[ImageRecord]] = {}
        for name, changed in models.items():
            if hasattr(model, "janus") and not (model.quantize or shards_the_model(self)):
                changed.janus = model.janus  # loaded once
            model = changed
            writer.output_dir = folder / name
            self.predict(model, datamodule=datamodule, return_predictions=False)
            if self.is_global_zero:
                runs[name] = _records(folder / name)
                if export:
                    write_export(export, folder / name, runs[name], folder / export / name)
        if self.is_global_zero:
            scores = {name: _scores(folder / name, runs[name], scorer) for name in runs if scorer}
            if scores:
                about = {
                    "model": model.model_path,
                    "seed": model.hparams["seed"],
                    "variants": variants,
                }
                write_report(folder, scores, reference, about)
            _write_sheet(folder, runs, scores)


def _models(model: LitDoLa, variants: dict[str, dict[str, Any]]) -> dict[str, LitDoLa]:
    """Create a model for each variant, all checked before anything is generated."""
    common = {key: value for key, value in model.hparams.items() if not key.startswith("_")}
    models = {}
    for name, changes in variants.items():
        if not name or safe_name(name) != name:
            raise UserError(
                f"variants: {name!r} is not a safe folder name; expected letters, digits, - and _"
            )
        for key in changes:
            if key in SHARED:
                raise UserError(
                    f"variants.{name}: {key} applies to all variants; expected it in model"
                )
        try:
            models[name] = LitDoLa.checked({**common, **changes})
        except UserError as error:
            raise UserError(f"variants.{name}: {error}") from error
    if not models:
        raise UserError("variants: empty; expected at least one, as {baseline: {dola: false}}")
    return models


def _records(run: Path) -> list[ImageRecord]:
    return sorted(read_images(run), key=lambda record: record.key)


def _scores(run: Path, records: list[ImageRecord], scorer: Scorer) -> list[Score]:
    """Score a run's images, and write the scores to ``scores.jsonl``."""
    scores, lines = [], []
    for record in records:
        with Image.open(run / record.file) as image:
            right = float(scorer(image, record.metadata))
        skill = str(record.metadata.get("tag", "all"))
        scores.append(Score(skill, record.prompt_index, record.image_index, right))
        lines.append(json.dumps({"file": record.file, "score": right}) + "\n")
    write_atomically(run / "scores.jsonl", ["".join(lines).encode()])
    return scores


def _write_sheet(
    folder: Path, runs: dict[str, list[ImageRecord]], scores: dict[str, list[Score]]
) -> None:
    """Show the first image of a few prompts, spread over the prompt file, under each variant."""
    first = {
        name: [place for place, record in enumerate(records) if record.image_index == 0]
        for name, records in runs.items()
    }
    prompts = min(map(len, first.values()))
    if not prompts:
        return
    shown = sorted({prompts * column // _COLUMNS for column in range(_COLUMNS)})
    places = {name: [first[name][prompt] for prompt in shown] for name in runs}
    some = next(iter(runs))
    write_contact_sheet(
        folder / "sheet.png",
        [runs[some][place].prompt for place in places[some]],
        {name: [folder / name / runs[name][p].file for p in places[name]] for name in runs},
        {name: [scores[name][p].right >= 0.5 for p in places[name]] for name in scores} or None,
    )
