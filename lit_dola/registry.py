"""The tasks, one row each. Classes and functions are named, and imported when they are needed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any


@cache
def resolve(name: str) -> Any:
    """Import what a row names as ``package.module:attribute``.

    Example:
        >>> resolve("lit_dola.errors:UserError").__name__
        'UserError'
    """
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A subcommand that needs neither a model nor a trainer."""

    help: str
    """Description, one line."""
    function: str
    """The function that runs it; its arguments are those of the command line."""
    examples: tuple[str, ...] = ()
    """Command lines, for the help."""


@dataclass(frozen=True, kw_only=True)
class ModelTask(Task):
    """A subcommand that loads a model."""


@dataclass(frozen=True, kw_only=True)
class RunTask(ModelTask):
    """A subcommand that predicts with a trainer and writes a run."""

    function: str = "lit_dola.callbacks.run_writer:predict"
    module: str
    """The LightningModule, with the settings ``model``."""
    data: str
    """The data module, with the settings ``data``."""
    writer: str
    """The callback that writes results, with the settings ``writer``."""
    callbacks: dict[str, str] = field(default_factory=dict)
    """Further callbacks, by the names of their settings."""
    record: str
    """The dataclass of a result's record."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTask(ModelTask):
    """A subcommand that runs another one under several variants, with that one's settings."""


@dataclass(frozen=True, kw_only=True)
class AppTask(ModelTask):
    """A subcommand that takes predict's configurations and writes no run, e.g. a server."""

    module: str = "lit_dola.tasks.generate:LitDoLa"
    partial: dict[str, tuple[str, tuple[str, ...]]]
    """Groups of which it takes only some settings: their class, and the settings."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Defaults of settings that differ from those of their class."""


_DEVICES = (
    "lightning.pytorch:Trainer", ("accelerator", "devices", "num_nodes", "precision")
)  # fmt: skip
TASKS: dict[str, Task] = {
    "predict": RunTask(
        help="Generate images for prompts.",
        module="lit_dola.tasks.generate:LitDoLa",
        data="lit_dola.data.prompts:PromptDataModule",
        writer="lit_dola.callbacks.writer:ImageWriter",
        callbacks={"image_logger": "lit_dola.callbacks.image_logger:ImageLogger"},
        record="lit_dola.runs.records:ImageRecord",
        examples=(
            "--config configs/dola.yaml",
            "--config configs/dola.yaml --model.alpha 0.05 --writer.output_dir outputs/a",
            "--config configs/dola.yaml --trainer.devices 4 --trainer.num_nodes 2",
            "--config configs/demo.yaml    # the small Janus, on a CPU",
        ),
    ),
    "answer": RunTask(
        help="Answer questions about pictures.",
        module="lit_dola.tasks.answer:LitAnswer",
        data="lit_dola.data.questions:QuestionDataModule",
        writer="lit_dola.callbacks.answer_writer:AnswerWriter",
        record="lit_dola.runs.answers:AnswerRecord",
        examples=(
            "--config configs/answer.yaml --data.question_json questions.jsonl",
            "--config configs/demo-answer.yaml    # the small Janus, on a CPU",
        ),
    ),
    "rank": RunTask(
        help="Rank labels for pictures, or the images of a run for their prompts.",
        module="lit_dola.tasks.rank:LitRank",
        data="lit_dola.data.items:ItemDataModule",
        writer="lit_dola.callbacks.rank_writer:RankWriter",
        record="lit_dola.runs.ranks:RankRecord",
        examples=(
            "--config configs/rank.yaml --data.item_json items.jsonl",
            "--config configs/demo-rank.yaml    # the images of the demo, on a CPU",
        ),
    ),
    "evaluate": EvaluationTask(
        help="Run a task under several variants, and score or export the results.",
        function="lit_dola.evaluation.evaluate:evaluate",
        examples=("--config configs/evaluate.yaml", "--config configs/pope.yaml"),
    ),
    "play": AppTask(
        help="Show a page to try DoLa on.",
        function="lit_dola.apps.playground:play",
        partial={
            "writer": ("lit_dola.callbacks.writer:ImageWriter", ("format", "quality")),
            "trainer": _DEVICES,
        },
        examples=(
            "--config configs/demo.yaml",
            "--config configs/dola.yaml --host 0.0.0.0 --port 7860",
        ),
    ),
    "serve": AppTask(
        help="Serve images to programs, as OpenAI's images endpoint does.",
        function="lit_dola.apps.server:serve",
        partial={"trainer": _DEVICES},
        examples=(
            "--config configs/demo.yaml --port 8000",
            "--config configs/dola.yaml --host 0.0.0.0 --trainer.devices 4",
        ),
    ),
    "verify": AppTask(
        help="Verify on this machine, with this checkpoint, what the project promises.",
        function="lit_dola.verification.verify:verify",
        module="lit_dola.verification.verify:LitVerify",
        partial={"trainer": _DEVICES},
        examples=("--config configs/dola.yaml", "--config configs/demo.yaml"),
    ),
    "lens": AppTask(
        help="Train readouts of middle layers on a model's own images or answers, or on pictures.",
        function="lit_dola.training.lens:lens",
        module="lit_dola.training.readouts:LitLens",
        partial={
            "data": (
                "lit_dola.training.sequences:LensDataModule",
                ("runs", "picture_json", "image_dir", "batch_size", "held_out"),
            ),
            "trainer": (
                "lightning.pytorch:Trainer",
                (
                    "accelerator",
                    "devices",
                    "num_nodes",
                    "strategy",
                    "precision",
                    "max_steps",
                    "accumulate_grad_batches",
                    "val_check_interval",
                    "check_val_every_n_epoch",
                    "logger",
                ),
            ),
        },
        defaults={
            "trainer.max_steps": 300,
            "trainer.val_check_interval": 50,
            "trainer.check_val_every_n_epoch": None,
            "trainer.logger": False,
        },
        examples=(
            "--config configs/lens.yaml",
            "--config configs/lens.yaml --data.runs [outputs/a,outputs/b]",
        ),
    ),
    "compare": Task(
        help="Write a page that shows runs side by side; images also blind.",
        function="lit_dola.cli.plain:compare",
    ),
    "export": Task(
        help="Write runs as a dataset (webdataset, Parquet), or in the form of a benchmark.",
        function="lit_dola.cli.export:export",
    ),
    "status": Task(
        help="Print how far a run is, while it runs and after.",
        function="lit_dola.cli.plain:status",
    ),
    "configs": Task(
        help="List the configurations that come with the package, or copy some.",
        function="lit_dola.cli.plain:configs",
    ),
}
"""The subcommands, by name."""


def run_tasks() -> Iterator[tuple[str, RunTask]]:
    """Yield the tasks that write runs, by name."""
    for name, task in TASKS.items():
        if isinstance(task, RunTask):
            yield name, task


@cache
def record_types() -> dict[str, Any]:
    """Return the dataclasses of records, by the name of the log that holds them."""
    return {kind.log: kind for kind in (resolve(task.record) for _, task in run_tasks())}
