"""``python main.py evaluate``: the same entries and noise under several variants, scored.

Each variant is a run of its task into its own folder, so an evaluation that was stopped continues
where it was.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jsonargparse.typing import NonNegativeInt
from lightning.pytorch import Trainer
from PIL import Image

from lit_dola.callbacks.open_run import cannot_write
from lit_dola.callbacks.run_writer import RunWriter, find_writer
from lit_dola.data.base import RequestDataModule, shards_the_model
from lit_dola.data.datamodule import PromptDataModule
from lit_dola.data.plan import RunPlan
from lit_dola.errors import UserError, printable, require
from lit_dola.janus.checkpoint import ModelFolder
from lit_dola.reports.compare import compare
from lit_dola.reports.contact_sheet import write_contact_sheet
from lit_dola.reports.export import Export, check_export, write_export
from lit_dola.reports.html import image_address
from lit_dola.reports.report import overall_table, write_report
from lit_dola.reports.scores import Report, Score
from lit_dola.reports.task_scores import scores_of, skill_of, tables_of
from lit_dola.runs.files import safe_name, to_json, write_atomically
from lit_dola.runs.image_file import read_image
from lit_dola.runs.ranks import RANKS
from lit_dola.runs.records import IMAGES, ImageRecord, Kind
from lit_dola.tasks.base import JanusModule
from lit_dola.tasks.generate import LitDoLa
from lit_dola.tasks.variants import all_variants, make_variants

_COLUMNS = 14
"""Prompts on the contact sheet."""
_COMPARED = 6
"""Variants on the page that compares them, at most."""

Task = Literal["predict", "answer", "rank"]
Scorer = Callable[[Image.Image, dict[str, Any]], float]
"""Scores whether an image shows what its prompt asks for: 1 (or True), 0, or anything between.

Its arguments are the image as it was written, and the metadata of its entry in the prompt file,
with the prompt under ``prompt``. In YAML: the ``class_path`` of a class whose objects can be called
like this, such as those of :mod:`lit_dola.tasks.scorers`.
"""


class EvaluationTrainer(Trainer):
    """Lightning's trainer with ``evaluate``."""

    def evaluate(
        self,
        model: JanusModule,
        datamodule: RequestDataModule,
        task: Task = "predict",
        variants: dict[str, dict[str, Any]] | None = None,
        grid: dict[str, list[Any]] | None = None,
        scorer: Scorer | None = None,
        export: Export | None = None,
        reference: str | None = None,
        sheet_prompts: list[NonNegativeInt] | None = None,
        sheet_image: NonNegativeInt = 0,
    ) -> None:
        """Run a task under each variant, then score the results or export images for a benchmark.

        Args:
            model: The model, with the settings that all variants share.
            datamodule: The entries; the key ``tag``, ``skill`` or ``category`` of an entry, if
                present, is its skill.
            task: What is evaluated: predict (images), answer or rank; the other settings are those
                of the task. Answers are right by the ``label`` of their entry. Rankings are right
                if the best label is the entry's ``label``, a text or its place in ``labels``.
            variants: What each variant changes of the model's settings, by the variant's name, as
                in ``{baseline: {dola: false}, sharp: {alpha: 0.3}}``.
            grid: Values of some settings, as in ``{alpha: [0.02, 0.1], strength: [0, 0.5, 1]}``;
                every combination is a further variant, named after what varies.
            scorer: Scores an image; null: no report about images is written.
            export: Benchmark whose folders the images are copied into,
                ``{output_dir}/{export}/{name}``: geneval, geneval2, dpg, t2i-compbench, wise or
                hpsv2; or flat, a single folder as programs for FID read it.
            reference: Variant that the others are compared with, image by image; null: the first.
            sheet_prompts: Prompts on the contact sheet, by their index in the file; null: a few
                from all over the file.
            sheet_image: Which image of each prompt the contact sheet shows, from 0.

        Raises:
            UserError: If a variant changes an unknown setting, a run fails, or the report cannot be
                drawn.
        """
        if scorer or task != "predict":
            require("matplotlib", "scorer" if scorer else "task", extra="evaluation")
        changes = all_variants(variants or {}, grid or {})
        models = make_variants(model, changes)
        reference = reference or next(iter(models))
        _check(models, datamodule.model, reference)
        images = _Images(scorer, export, _Sheet(sheet_prompts, sheet_image))
        images.check(model, datamodule, task)
        writer = find_writer(self)
        assert writer is not None
        folder = writer.output_dir
        runs = self._run_variants(models, model, datamodule, writer)
        if not self.is_global_zero:
            return
        try:
            if writer.kind is IMAGES:
                scores = images.scores(runs, folder)
            else:
                file = datamodule.plan.prompt_file
                scores = {name: scores_of(run.records, file) for name, run in runs.items()}
            if scores:
                about = {"model": printable(model.model_path), "seed": model.hparams.get("seed")}
                records = {name: run.records for name, run in runs.items()}
                report = Report(
                    scores, reference, changes, grid or {}, about, writer.kind.results,
                    f"{writer.kind.subject}s", tables_of(records),
                    getattr(scorer, "quantity", "Percent right"), getattr(scorer, "note", ""),
                )  # fmt: skip
                write_report(folder, report, _pages(runs, writer.kind, folder, reference))
                print(overall_table(report))
                print(printable(str(folder / "index.html")))
            if writer.kind is IMAGES:
                images.sheet.write(folder / "sheet.png", runs, scores)
        except OSError as error:
            raise UserError(cannot_write(folder, error)) from error

    def _run_variants(
        self,
        models: Mapping[str, JanusModule],
        loaded: JanusModule,
        data: RequestDataModule,
        writer: RunWriter,
    ) -> "dict[str, _Run]":
        """Run the task under each variant, each into its own folder.

        Args:
            models: The variants.
            loaded: A module whose model the first one may use.
            data: The entries.
            writer: The writer; its folder has those of the variants.

        Returns:
            What each has made, on the first rank; nothing on the others.
        """
        folder = writer.output_dir
        runs: dict[str, _Run] = {}
        for name, model in models.items():
            if not shards_the_model(self):
                model.take_model(loaded)  # loaded once
            loaded = model
            writer.output_dir, writer.title = folder / name, name
            self.predict(model, datamodule=data, return_predictions=False)
            # In low precision all variants must be rounded alike, whatever memory is free by then.
            data.batch_size = data.plan.batch_size or "auto"
            writer.conclude(self)
            if self.is_global_zero:  # not folder / name: on_mismatch may have chosen another
                runs[name] = _read_run(writer.kind, writer.output_dir, data.plan)
        return runs


def _check(models: Mapping[str, JanusModule], folder: ModelFolder, reference: str) -> None:
    """Check the variants before anything is made.

    Raises:
        UserError: If a variant's name cannot be a folder, it does not fit the model, or the
            reference is not a variant.
    """
    for name, model in models.items():
        if not name or safe_name(name) != name:
            raise UserError(
                f"variants: {name!r} is not a safe folder name; expected letters, digits, - and _"
            )
        try:
            model.check(folder)
        except UserError as error:
            raise UserError(f"variants.{name}: {error}") from error
    if reference not in models:
        raise UserError(
            f"reference: {reference!r} is not a variant; expected one of {', '.join(models)}"
        )


class _Run(NamedTuple):
    """What one variant has made."""

    folder: Path
    records: list[Any]
    """Records of the results that were asked for, in the order of their keys."""


def _read_run(kind: Kind[Any], folder: Path, plan: RunPlan) -> _Run:
    """Read the records of the results that a run was asked for; its folder may hold more."""
    asked_for = {request.key for request in plan.asked_for}
    records = [record for record in kind.read(folder) if record.key in asked_for]
    return _Run(folder, sorted(records, key=lambda record: record.key))


def _pages(
    runs: Mapping[str, _Run], kind: Kind[Any], folder: Path, reference: str
) -> dict[str, str]:
    """Return the pages that a report leads to, and write the one that compares its variants."""
    own = {
        name: image_address(run.folder / "index.html", folder)
        for name, run in runs.items()
        if (run.folder / "index.html").is_file()
    }
    first = [reference, *(name for name in runs if name != reference)][:_COMPARED]
    if len(first) < 2 or kind is RANKS:
        return own
    compare([str(runs[name].folder) for name in first], str(folder / "compare"))
    label = "side by side" if len(first) == len(runs) else f"the first {len(first)} side by side"
    return {label: "compare/index.html", **own}


class _Images(NamedTuple):
    """What is made of the images of an evaluation."""

    scorer: Scorer | None
    export: Export | None
    sheet: "_Sheet"

    def check(self, model: JanusModule, data: RequestDataModule, task: Task) -> None:
        """Check it before anything is generated.

        Raises:
            UserError: If the prompts do not fit the export or the sheet, or there are no images.
        """
        if isinstance(model, LitDoLa):
            assert isinstance(data, PromptDataModule)
            if self.export:
                check_export(self.export, data.read_prompts([]), data.images)
            self.sheet.check(data, model.parallel_size)
            return
        for name in ("scorer", "export"):
            if getattr(self, name) is not None:
                raise UserError(f"{name}: the task {task} makes no images; expected null")

    def scores(self, runs: "dict[str, _Run]", folder: Path) -> dict[str, list[Score]]:
        """Export the images and score them, each if asked for."""
        for name, run in runs.items():
            if self.export:
                write_export(self.export, run.folder, run.records, folder / self.export / name)
        scorer = self.scorer
        return {name: _scores(run, scorer) for name, run in runs.items()} if scorer else {}


def _scores(run: _Run, scorer: Scorer) -> list[Score]:
    """Score a run's images, and write the scores to ``scores.jsonl``.

    Raises:
        UserError: If an image cannot be read or scored.
    """
    scores, lines = [], []
    for record in run.records:
        image = read_image(run.folder / record.file)
        try:
            right = float(scorer(image, {**record.metadata, "prompt": record.prompt}))
        except UserError:
            raise
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
        scores.append(
            Score(skill_of(record.metadata), record.prompt_index, record.image_index, right)
        )
        lines.append(to_json({"file": record.file, "score": right}))
    write_atomically(run.folder / "scores.jsonl", lines)
    return scores


class _Sheet(NamedTuple):
    """What the contact sheet shows."""

    prompts: list[int] | None
    """Prompts by their index; None: a few, spread over the file."""
    image: int
    """Which image of each."""

    def check(self, data: PromptDataModule, parallel_size: int) -> None:
        """Check that its images are asked for.

        Raises:
            UserError: If one is not.
        """
        if self.image >= parallel_size:
            raise UserError(
                f"sheet_image: {self.image}; expected less than model.parallel_size,"
                f" {parallel_size}: images are counted from 0"
            )
        known = {prompt.prompt_index for prompt in data.read_prompts([])} if self.prompts else set()
        for prompt in self.prompts or ():
            if prompt not in known:
                raise UserError(
                    f"sheet_prompts: {prompt} is not a prompt of {data.prompt_json}; expected"
                    " indices of its entries, from 0"
                )

    def write(self, path: Path, runs: dict[str, _Run], scores: dict[str, list[Score]]) -> None:
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
                name: [runs[name].folder / own[prompt].file for prompt in shown]
                for name, own in records.items()
            },
            {name: [found[prompt] for prompt in shown] for name, found in right.items()} or None,
        )

    def _shows(self, of: ImageRecord | Score) -> bool:
        return of.image_index == self.image
