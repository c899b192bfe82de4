"""Parsers of the tasks that load a model, built from their rows of the table of tasks."""

from collections.abc import Iterable
from inspect import signature
from textwrap import indent
from typing import Any, cast

from jsonargparse import SUPPRESS
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser

from lit_dola.callbacks.progress import RunProgress
from lit_dola.cli.arguments import Arguments
from lit_dola.cli.parser import CONFIG_HELP, OneLineParser, parser_options
from lit_dola.registry import TASKS, AppTask, EvaluationTask, ModelTask, RunTask, Task, resolve
from lit_dola.settings.texts import take_literally

PASSED: set[str | int] = {"trainer", "model", "datamodule", "writer"}
"""Arguments of a task's function that are not settings but objects created from them."""
TRAINER_DEFAULTS: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}
_ONLY_FOR_TRAINING = {
    f"trainer.{name}"
    for name in (
        "max_epochs", "min_epochs", "max_steps", "min_steps",
        "limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches",
        "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps",
        "log_every_n_steps", "enable_checkpointing", "accumulate_grad_batches",
        "gradient_clip_val", "gradient_clip_algorithm", "sync_batchnorm", "detect_anomaly",
        "reload_dataloaders_every_n_epochs", "enable_autolog_hparams", "model_registry",
    )
}  # fmt: skip
"""Settings that are accepted, because old configurations have them, but not shown."""


class Parser(OneLineParser, LightningArgumentParser):
    """The parser of a task that loads a model."""


class ParsedTask:
    """A task and the settings it takes."""

    def __init__(self, name: str, evaluated: str = "predict") -> None:
        self.name = name
        self.task: Task = TASKS[name]
        row = TASKS.get(evaluated) if isinstance(self.task, EvaluationTask) else self.task
        row = row if isinstance(row, RunTask | AppTask) else TASKS["predict"]
        assert isinstance(row, RunTask | AppTask)
        self.row = row
        self.module: Any = resolve(self.row.module)

    @classmethod
    def of(cls, arguments: Arguments) -> "ParsedTask":
        """Return the task that the command line asks for."""
        assert arguments.task is not None
        return cls(arguments.task, arguments.evaluated_task())

    @property
    def writes_run(self) -> bool:
        """Return whether the task writes a single run, so that it has ``--dry_run``."""
        return isinstance(self.task, RunTask)

    @property
    def groups(self) -> dict[str, type]:
        """Groups of settings besides the trainer's, and the classes that take them."""
        if isinstance(self.row, AppTask):
            named = {name: row for name, (row, _) in self.row.partial.items()}
        else:
            named = {"data": self.row.data, "writer": self.row.writer, **self.row.callbacks}
        own = {group: resolve(name) for group, name in named.items() if group != "trainer"}
        found = {"model": self.module, **own}
        return found if isinstance(self.row, AppTask) else {**found, "progress": RunProgress}

    @property
    def only(self) -> dict[str, tuple[str, ...]]:
        """Keys of predict's configurations that an application reads, by group."""
        if not isinstance(self.row, AppTask):
            return {}
        predict = ParsedTask("predict")
        unread: dict[str, tuple[str, ...]] = dict.fromkeys(predict.groups, ())
        unread.pop("model")
        return {**unread, **{group: names for group, (_, names) in self.row.partial.items()}}

    def skipped(self, group: str, owner: type) -> set[str | int]:
        """Return the settings of a group that the task does not take."""
        if not isinstance(self.row, AppTask) or group not in self.row.partial:
            return set()
        taken = self.row.partial[group][1]
        return {name for name in signature(owner).parameters if name not in taken}

    def parser(self, **options: Any) -> Parser:
        """Return the parser of the task's settings."""
        examples = indent(_examples(self.name, self.task.examples), "  ")
        parser = Parser(
            usage="%(prog)s [--config FILE] [--GROUP.SETTING VALUE ...]",
            description=self.task.help,
            epilog=f"examples:\n{examples}",
            only=self.only,
            **options,
        )
        parser.add_argument("-c", "--config", action="config", help=CONFIG_HELP)
        parser.add_argument("--seed_everything", type=bool | int, default=0, help=SUPPRESS)
        skip: set[str | int]
        for group, owner in self.groups.items():
            if issubclass(owner, ProgressBar):  # the trainer gets it unless it has another one
                parser.add_class_arguments(owner, group)
            elif skip := self.skipped(group, owner):
                parser.add_class_arguments(owner, group, skip=skip)
            else:
                parser.add_lightning_class_args(cast(Any, owner), group)
            take_literally(parser, owner, f"{group}.")
        parser.add_class_arguments(
            Trainer,
            "trainer",
            instantiate=False,
            fail_untyped=False,
            sub_configs=True,
            skip=self.skipped("trainer", Trainer),
        )
        for action in parser._actions:
            if action.dest in _ONLY_FOR_TRAINING and not isinstance(self.row, AppTask):
                action.help = SUPPRESS
        known = {action.dest for action in parser._actions}
        defaults = {f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()}
        defaults |= self.row.defaults if isinstance(self.row, AppTask) else {}
        parser.set_defaults({name: value for name, value in defaults.items() if name in known})
        self._add_own(parser)
        return parser

    def _add_own(self, parser: Parser) -> None:
        parser.add_function_arguments(resolve(self.task.function), skip=PASSED, fail_untyped=False)
        if self.writes_run:
            parser.add_argument(
                "--dry_run",
                type=bool,
                default=False,
                help="Print how much there is to generate, in how many batches, and how much disk"
                " it takes, and end; nothing is loaded or written, and no device is needed.",
            )


def own_arguments(task: Task) -> list[str]:
    """Return the settings of a task besides those of groups."""
    parameters: Iterable[str] = signature(resolve(task.function)).parameters
    return [name for name in parameters if name not in PASSED]


def _examples(name: str, examples: Iterable[str]) -> str:
    return "\n".join(f"python main.py {name} {example}" for example in examples)


def all_parsers() -> dict[str, OneLineParser]:
    """Return the parsers of all tasks that load a model, by name, e.g. to complete them."""
    return {
        name: ParsedTask(name).parser(**parser_options())
        for name, task in TASKS.items()
        if isinstance(task, ModelTask)
    }
