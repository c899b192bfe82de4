"""``python main.py evaluate``: the same entries and noise under several variants, scored.

Each variant is a run of its task into its own folder, so an evaluation that was stopped continues
where it was.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jsonargparse.typing import NonNegativeInt
from lightning.pytorch import Trainer

from lit_dola.callbacks.run_writer import RunWriter, find_writer
from lit_dola.data.base import RequestDataModule, shards_the_model
from lit_dola.data.plan import RunPlan
from lit_dola.errors import UserError, within
from lit_dola.evaluation.images import ImageEvaluation, Run, Scorer, Sheet
from lit_dola.evaluation.variants import all_variants, make_variants
from lit_dola.janus.checkpoint import ModelFolder
from lit_dola.messages import printable
from lit_dola.registry import run_tasks
from lit_dola.reports.compare import COMPARED, compare
from lit_dola.reports.export import Export
from lit_dola.reports.html import image_address
from lit_dola.reports.report import overall_table, write_report
from lit_dola.reports.scores import Report
from lit_dola.reports.task_scores import scores_of, tables_of
from lit_dola.runs.files import safe_name
from lit_dola.runs.open_run import cannot_write
from lit_dola.runs.records import ImageRecord, RunRecord
from lit_dola.settings.checks import require
from lit_dola.tasks.base import JanusModule

_COMPARED = 6
"""Maximum number of variants on the page that compares them."""

if TYPE_CHECKING:
    Task = str
else:
    Task = Literal[tuple(name for name, _ in run_tasks())]


def evaluate(
    trainer: Trainer,
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
        trainer: The trainer, whose writer's folder gets those of the variants.
        model: The model, with the settings that all variants share.
        datamodule: The entries; the key ``tag``, ``skill`` or ``category`` of an entry, if present,
            is its skill.
        task: The task to evaluate: predict (images), answer or rank; the other settings are those
            of the task. Answers are right by the ``label`` of their entry. Rankings are right if
            the best label is the entry's ``label``, a text or its place in ``labels``.
        variants: Changes of the model's settings by the variant's name, e.g.
            ``{baseline: {dola: false}, sharp: {alpha: 0.3}}``.
        grid: Values of some settings, e.g. ``{alpha: [0.02, 0.1], strength: [0, 0.5, 1]}``; every
            combination is a further variant, named after what varies.
        scorer: Scores an image; null: no report about images is written.
        export: Benchmark whose folders the images are copied into, in
            ``{output_dir}/{export}/{name}``: geneval, geneval2, dpg, t2i-compbench, wise or hpsv2;
            or flat, a single folder as programs for FID read it.
        reference: Variant that the others are compared with, image by image; null: the first.
        sheet_prompts: Prompts on the contact sheet, by their index in the file; null: a few from
            all over the file.
        sheet_image: Index of the image of each prompt that the contact sheet shows.

    Raises:
        UserError: If a variant changes an unknown setting, a run fails, or the report cannot be
            drawn.
    """
    if scorer or task != "predict":
        require("matplotlib", "scorer" if scorer else "task", extra="evaluation")
    datamodule.attach(model)
    changes = all_variants(variants or {}, grid or {})
    models = make_variants(model, changes)
    reference = reference or next(iter(models))
    _check(models, datamodule.model, reference)
    images = ImageEvaluation(scorer, export, Sheet(sheet_prompts, sheet_image))
    images.check(model, datamodule, task)
    evaluation = _Evaluation(trainer, model, datamodule, changes, grid or {}, reference, images)
    evaluation.run(models)


class _Evaluation(NamedTuple):
    """An evaluation whose settings are checked."""

    trainer: Trainer
    model: JanusModule
    data: RequestDataModule
    changes: Mapping[str, Mapping[str, Any]]
    grid: Mapping[str, list[Any]]
    reference: str
    images: ImageEvaluation

    def run(self, models: Mapping[str, JanusModule]) -> None:
        """Run all variants, and report on them on the first rank."""
        writer = find_writer(self.trainer)
        assert writer is not None
        folder = writer.output_dir
        runs = self._run_variants(models, writer)
        if self.trainer.is_global_zero:
            try:
                self._report(runs, writer.kind, folder)
            except OSError as error:
                raise cannot_write(folder, error) from error

    def _run_variants(self, models: Mapping[str, JanusModule], writer: RunWriter) -> dict[str, Run]:
        """Run the task under each variant, each into its own folder.

        Returns:
            The runs, on the first rank; nothing on the others.
        """
        folder, loaded = writer.output_dir, self.model
        runs: dict[str, Run] = {}
        for name, model in models.items():
            if not shards_the_model(self.trainer):
                model.take_model(loaded)  # loaded once
            loaded = model
            writer.output_dir, writer.title = folder / name, name
            self.trainer.predict(model, datamodule=self.data, return_predictions=False)
            # In low precision all variants must be rounded alike, whatever memory is free by then.
            self.data.batch_size = self.data.plan.batch_size or self.data.batch_size
            writer.conclude(self.trainer)
            if self.trainer.is_global_zero:  # on_mismatch may have chosen another folder
                runs[name] = _read_run(writer.kind, writer.output_dir, self.data.plan)
        return runs

    def _report(self, runs: dict[str, Run], kind: type[RunRecord], folder: Path) -> None:
        """Write the report, and the contact sheet of images."""
        scorer = self.images.scorer
        if kind is ImageRecord:
            scores = self.images.scores(runs, folder)
        else:
            file = self.data.plan.entry_file
            scores = {name: scores_of(run.records, file) for name, run in runs.items()}
        if scores:
            model = self.model
            report = Report(
                scores,
                self.reference,
                self.changes,
                self.grid,
                {"model": printable(model.model_path), "seed": model.hparams.get("seed")},
                kind.results,
                f"{kind.entry_noun}s",
                tables_of({name: run.records for name, run in runs.items()}),
                getattr(scorer, "quantity", "Percent right"),
                getattr(scorer, "note", ""),
            )
            write_report(folder, report, _pages(runs, kind, folder, self.reference))
            print(overall_table(report))
            print(printable(str(folder / "index.html")))
        if kind is ImageRecord:
            self.images.sheet.write(folder / "sheet.png", runs, scores)


def _check(models: Mapping[str, JanusModule], folder: ModelFolder, reference: str) -> None:
    """Check the variants before anything is generated."""
    for name, model in models.items():
        if not name or safe_name(name) != name:
            raise UserError(
                f"{name!r} is not a safe folder name",
                "letters, digits, - and _",
                setting="variants",
            )
        with within(f"variants.{name}"):
            model.check(folder)
    if reference not in models:
        raise UserError(
            f"{reference!r} is not a variant", f"one of {', '.join(models)}", setting="reference"
        )


def _read_run(kind: type[RunRecord], folder: Path, plan: RunPlan) -> Run:
    """Read the records of the results that a run was asked for; its folder may hold more."""
    asked_for = {request.key for request in plan.asked_for}
    records = [record for record in kind.read(folder) if record.key in asked_for]
    return Run(folder, sorted(records, key=lambda record: record.key))


def _pages(
    runs: Mapping[str, Run], kind: type[RunRecord], folder: Path, reference: str
) -> dict[str, str]:
    """Return the pages that a report links to, and write the one that compares its variants."""
    own = {
        name: image_address(run.folder / "index.html", folder)
        for name, run in runs.items()
        if (run.folder / "index.html").is_file()
    }
    first = [reference, *(name for name in runs if name != reference)][:_COMPARED]
    if len(first) < 2 or kind not in COMPARED:
        return own
    compare([str(runs[name].folder) for name in first], str(folder / "compare"))
    label = "side by side" if len(first) == len(runs) else f"the first {len(first)} side by side"
    return {label: "compare/index.html", **own}
