"""``python main.py evaluate``: the same prompts and noise under several settings, scored.

Each setting is a run of ``predict`` into a folder of its own, so that an evaluation that was
stopped goes on where it was.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from PIL import Image

from lit_dola.contact_sheet import write_contact_sheet
from lit_dola.data import PromptDataModule, shards_the_model
from lit_dola.errors import UserError, require
from lit_dola.layouts import Layout, write_layout
from lit_dola.module import LitDoLa
from lit_dola.report import Score, write_report
from lit_dola.run_folder import Lines, Record, safe_name, write_atomically
from lit_dola.writer import find_writer

SHARED = ("model_path", "roles", "backend", "quantize", "parallel_size", "images_per_batch", "seed")
"""Settings of the model that all settings of an evaluation have in common."""
_COLUMNS = 14
"""Prompts on the contact sheet."""

Scorer = Callable[[Image.Image, dict[str, Any]], float]
"""Says whether an image shows what its prompt asks for: 1 (or True) or 0, or anything between.

It is given the image as it was written, and what the entry of the prompt file holds beside the
prompt. In YAML: the ``class_path`` of a class whose objects can be called so.
"""


class EvaluationTrainer(Trainer):
    """Lightning's trainer, which can evaluate too."""

    def evaluate(
        self,
        model: LitDoLa,
        datamodule: PromptDataModule,
        settings: dict[str, dict[str, Any]],
        scorer: Scorer | None = None,
        layout: Layout | None = None,
        reference: str | None = None,
    ) -> None:
        """Generate under each setting; score the images, or lay them out for who scores them.

        Args:
            model: The model with what all settings have in common.
            datamodule: The prompts; their key ``tag``, if they have one, is their skill.
            settings: By name, what each changes of the model's settings, as in
                ``{baseline: {dola: false}, sharp: {alpha: 0.3}}``.
            scorer: What says whether an image is right; none: no report is written.
            layout: Whose folders the images are copied into, ``{output_dir}/{layout}/{name}``:
                geneval or dpg.
            reference: Name of the setting that the others are compared with, image by image; the
                first if None.

        Raises:
            UserError: If a setting is not one of the model's, a run fails, or the report cannot be
                drawn.
        """
        if scorer:
            require("matplotlib", "scorer", extra="evaluation")
        writer = find_writer(self)
        assert writer is not None
        folder = writer.output_dir
        reference = reference or next(iter(settings), "")
        models = _models(model, settings)
        if reference not in models:
            raise UserError(
                f"reference: {reference!r} is not a setting; expected one of {', '.join(models)}"
            )
        runs: dict[str, list[Record]] = {}
        for name, changed in models.items():
            if hasattr(model, "janus") and not (model.quantize or shards_the_model(self)):
                changed.janus = model.janus  # loaded once
            model = changed
            writer.output_dir = folder / name
            self.predict(model, datamodule=datamodule, return_predictions=False)
            if self.is_global_zero:
                runs[name] = _records(folder / name)
                if layout:
                    write_layout(layout, folder / name, runs[name], folder / layout / name)
        if self.is_global_zero:
            scores = {name: _scores(folder / name, runs[name], scorer) for name in runs if scorer}
            if scores:
                about = {
                    "model": model.model_path,
                    "seed": model.hparams["seed"],
                    "settings": settings,
                }
                write_report(folder, scores, reference, about)
            _write_sheet(folder, runs, scores)


def _models(model: LitDoLa, settings: dict[str, dict[str, Any]]) -> dict[str, LitDoLa]:
    """A model for each setting, all checked before anything is generated."""
    common = {key: value for key, value in model.hparams.items() if not key.startswith("_")}
    models = {}
    for name, changes in settings.items():
        if not name or safe_name(name) != name:
            raise UserError(f"settings: {name!r} is not a safe name of a folder")
        for key in changes:
            if key in SHARED:
                raise UserError(f"settings.{name}: {key} is for all settings; expected it in model")
        try:
            models[name] = LitDoLa.checked({**common, **changes})
        except UserError as error:
            raise UserError(f"settings.{name}: {error}") from error
    if not models:
        raise UserError("settings: empty; expected at least one, as {baseline: {dola: false}}")
    return models


def _records(run: Path) -> list[Record]:
    records = Lines(run, "metadata").records()
    return sorted(records, key=lambda record: (record["prompt_index"], record["image_index"]))


def _scores(run: Path, records: list[Record], scorer: Scorer) -> list[Score]:
    """The scores of a run's images, which go to ``scores.jsonl`` as well."""
    scores, lines = [], []
    for record in records:
        with Image.open(run / record["file"]) as image:
            right = float(scorer(image, record["metadata"]))
        skill = str(record["metadata"].get("tag", "all"))
        scores.append(Score(skill, record["prompt_index"], record["image_index"], right))
        lines.append(json.dumps({"file": record["file"], "score": right}) + "\n")
    write_atomically(run / "scores.jsonl", ["".join(lines).encode()])
    return scores


def _write_sheet(
    folder: Path, runs: dict[str, list[Record]], scores: dict[str, list[Score]]
) -> None:
    """The first image of a few prompts, spread over the prompt file, under each setting."""
    first = {
        name: [place for place, record in enumerate(records) if record["image_index"] == 0]
        for name, records in runs.items()
    }
    prompts = min(map(len, first.values()))
    shown = sorted({prompts * column // _COLUMNS for column in range(_COLUMNS)})
    places = {name: [first[name][prompt] for prompt in shown] for name in runs} if prompts else {}
    if not places:
        return
    some = next(iter(runs))
    write_contact_sheet(
        folder / "sheet.png",
        [runs[some][place]["prompt"] for place in places[some]],
        {name: [folder / name / runs[name][p]["file"] for p in places[name]] for name in runs},
        {name: [scores[name][p].right >= 0.5 for p in places[name]] for name in scores} or None,
    )
