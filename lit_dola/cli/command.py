"""The command line: tasks on top of LightningCLI, and errors meant for users.

Parsing runs nothing: a task runs once its settings are known to be valid.
"""

import json
import logging
import os
import re
import subprocess
import sys
from argparse import SUPPRESS
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from textwrap import indent
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from lit_dola import __version__
from lit_dola.callbacks.quiet import quiet_lightning
from lit_dola.callbacks.run_writer import find_writer
from lit_dola.callbacks.signals import (
    Interrupted,
    StopOnSignal,
    leave_process_group,
    requeue_slurm_job,
    signals_end_the_process,
)
from lit_dola.cli.dry_run import describe
from lit_dola.cli.messages import fail, on_first_rank
from lit_dola.cli.parser import PARSER, OneLineParser
from lit_dola.cli.plain import ABOUT, PLAIN_TASKS, TRAINER_TASKS, add_plain_tasks
from lit_dola.cli.shipped import config_folders, locate_inputs, refuse_missing_inputs
from lit_dola.cli.tasks import EXIT_SKIPPED, TASKS, TaskTrainer, TrainerTask, evaluated_task
from lit_dola.data.base import RequestDataModule
from lit_dola.data.datamodule import PromptDataModule
from lit_dola.errors import UserError, printable, refuse_null, require
from lit_dola.evaluation import EvaluationTrainer
from lit_dola.tasks.base import JanusModule
from lit_dola.tasks.generate import LitDoLa
from lit_dola.tasks.recommended import recommended_settings

_log = logging.getLogger(__name__)

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

_LAUNCHERS = {
    "torchrun": "WORLD_SIZE",
    "mpirun": "OMPI_COMM_WORLD_SIZE",
    "srun": "SLURM_STEP_NUM_TASKS",
}
"""Programs that start several processes, and where they say how many."""


class Parser(OneLineParser, LightningArgumentParser):
    """The parser of a task that needs a trainer.

    Args:
        task: The task whose settings this parser knows; None for all tasks together.
        options: As jsonargparse's parser takes them.
    """

    def __init__(self, *args: Any, task: TrainerTask | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.task = task


class DoLaCLI(LightningCLI):
    """LightningCLI with the tasks of :data:`TASKS`; there is nothing to fit, validate or test."""

    parser: Parser
    config_folders: list[Path]
    """Where the configurations are."""

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Add ``--version`` and the tasks that need neither a model nor a trainer."""
        super().setup_parser(*args, **kwargs)
        self.parser.add_argument("--version", action="version", version=f"lit-dola {__version__}")
        add_plain_tasks(self.parser, lambda **about: self.init_parser(**about, **PARSER))

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the trainer's tasks, and the arguments of each that are not offered."""
        return {name: task.hidden for name, task in TASKS.items()}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the trainer, and the model, the data and the callbacks of the parser's task."""
        for group, owner in _task_of(parser).groups.items():
            if issubclass(owner, ProgressBar):  # the trainer gets it unless it has another one
                parser.add_class_arguments(owner, group)
            else:
                parser.add_lightning_class_args(cast(Any, owner), group)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        for action in parser._actions:
            if action.dest in _ONLY_FOR_TRAINING:
                action.help = SUPPRESS
        defaults = dict(self.trainer_defaults)
        defaults.pop("callbacks")
        parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Pass the model's settings on to the data module."""
        for name in _task_of(parser).linked:
            parser.link_arguments(f"model.{name}", f"data.{name}")
        if "seed" in signature(_task_of(parser).model).parameters:  # one seed, not two
            parser.link_arguments("model.seed", "seed_everything", compute_fn=_seed)
        else:
            parser.set_defaults(seed_everything=0)
        if _task_of(parser).makes_run:
            parser.add_argument(
                "--dry_run",
                type=bool,
                default=False,
                help="Print how much there is to make, in how many batches, and how much disk it"
                " takes, and end; nothing is loaded or written, and no device is needed.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with what the checkpoint recommends as defaults.

        LightningCLI is kept from seeding for tasks that draw nothing.
        """
        given = sys.argv[1:] if args is None else [*args]
        silent = [arg for arg in given if not arg.startswith("--print_config")]
        Parser.notes = []
        self.config = parser.parse_args(silent)
        name = self.config["subcommand"]
        if name in PLAIN_TASKS:
            self.config[name]["seed_everything"] = False
        else:
            self.config_folders = config_folders(silent)
            locate_inputs(self.config[name], self.config_folders)
            if _task_of(self._parser(name)).model is LitDoLa:
                self._parse_again_if_the_checkpoint_recommends(name, silent)
                locate_inputs(self.config[name], self.config_folders)
        on_first_rank(_log.warning, dict.fromkeys(Parser.notes))
        if given != silent:
            parser.parse_args(given)  # prints and ends

    def _parse_again_if_the_checkpoint_recommends(self, name: str, args: list[str]) -> None:
        before = self.config[name]["model"]
        recommended = recommended_settings(before["model_path"])
        if not recommended:
            return
        self._parser(name).set_defaults({f"model.{key}": recommended[key] for key in recommended})
        self.config = self.parser.parse_args(args)
        now = self.config[name]["model"]
        used = [f"{key} {json.dumps(now[key])}" for key in recommended if now[key] != before[key]]
        if used:
            path = printable(before["model_path"])
            on_first_rank(_log.info, [f"{path} recommends {', '.join(used)}"])

    def before_instantiate_classes(self) -> None:
        """Run a task that needs no model, and end; for the others, check what they are made of.

        Raises:
            UserError: If a setting is null that cannot be, or the strategy cannot work.
        """
        name = self.config["subcommand"]
        settings = self.config[name]
        if name in PLAIN_TASKS:
            PLAIN_TASKS[name].run(settings)
            raise SystemExit(0)
        for group, owner in _task_of(self._parser(name)).groups.items():
            refuse_null(owner, settings[group].as_dict(), f"{group}.")
        groups = ("model", "data") if _task_of(self._parser(name)).reads_data else ("model",)
        refuse_missing_inputs(settings, self.config_folders, groups)
        strategy = str(settings.trainer.strategy)
        if re.search("spawn|fork|notebook", strategy):
            raise UserError(
                f"trainer.strategy: {strategy} copies a running process; expected ddp, which starts"
                " one process per device"
            )

    def instantiate_classes(self) -> None:
        """Create everything that the settings name.

        Raises:
            UserError: If a class cannot be created, such as a logger whose package is missing.
        """
        if self.config[self.config["subcommand"]].get("dry_run"):
            self._run_dry()
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if not isinstance(cause, ImportError):
                raise
            raise UserError(f"trainer: {cause}") from error

    def _run_dry(self) -> None:
        """Print what the run would make, and end."""
        made = self.parser.instantiate_classes(self.config)[self.config["subcommand"]]
        for line in describe(made.model, made.data, made.writer, made.trainer):
            print(line)
        raise SystemExit(0)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the trainer.

        Raises:
            UserError: If its settings do not work together, or not on this machine.
        """
        settings = self.config_init[self.config_init["subcommand"]].trainer
        given = settings.callbacks or []
        callbacks = [*given] if isinstance(given, list) else [given]
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if not (has_bar or settings.barebones or settings.enable_progress_bar is False):
            # Last, so that it ends after the writer, which waits for all ranks.
            own = self.config_init[self.config_init["subcommand"]].progress
            self.trainer_defaults["callbacks"] = [*self.trainer_defaults["callbacks"], own]
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
            raise UserError(trainer_message(error)) from error
        _check_world_size(trainer.world_size, os.environ)
        return trainer

    def predict(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Predict; the results are written and not kept in memory."""
        self.trainer.predict(model, datamodule=datamodule, return_predictions=False)
        if writer := find_writer(self.trainer):
            writer.conclude(self.trainer)
        leave_process_group()
        self._exit_if_skipped()

    def answer(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Answer questions, as :meth:`predict` makes images."""
        self.predict(model, datamodule)

    def rank(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Rank, as :meth:`predict` makes images."""
        self.predict(model, datamodule)

    def play(self, model: LightningModule, datamodule: LightningDataModule, **how: Any) -> None:
        """Show the playground, see :meth:`lit_dola.cli.tasks.TaskTrainer.play`."""
        require("gradio", "play", extra="play")
        cast(TaskTrainer, self.trainer).play(
            cast(LitDoLa, model), cast(PromptDataModule, datamodule), **how
        )

    def serve(self, model: LightningModule, datamodule: LightningDataModule, **how: Any) -> None:
        """Serve images, see :meth:`lit_dola.cli.tasks.TaskTrainer.serve`."""
        require("litserve", "serve", extra="serve")
        cast(TaskTrainer, self.trainer).serve(
            cast(LitDoLa, model), cast(PromptDataModule, datamodule), **how
        )

    def evaluate(self, model: LightningModule, datamodule: LightningDataModule, **how: Any) -> None:
        """Evaluate, see :meth:`lit_dola.evaluation.EvaluationTrainer.evaluate`."""
        cast(EvaluationTrainer, self.trainer).evaluate(
            cast(JanusModule, model), cast(RequestDataModule, datamodule), **how
        )
        leave_process_group()
        self._exit_if_skipped()

    def _exit_if_skipped(self) -> None:
        writer = find_writer(self.trainer)
        if writer and writer.skipped:
            where = ", ".join(str(folder / "errors.jsonl") for folder in writer.skipped)
            skipped = f"{sum(writer.skipped.values())} skipped, see {where}"
            raise SystemExit(fail(skipped, EXIT_SKIPPED))


def run_trainer_task(args: list[str]) -> None:
    """Run a task that needs a trainer, see :func:`lit_dola.cli.entry.main`.

    Raises:
        UserError: For what the user can fix.
        SystemExit: If settings are wrong, the run was stopped, or something was skipped.
    """
    disable_progress_bar()
    set_verbosity_error()
    for name in ("fsdp2", "fsdp"):  # by class, it also runs without a GPU
        StrategyRegistry.register(name, ModelParallelStrategy, override=True)
    tasks = {**TASKS, "evaluate": evaluated_task(args, os.environ)}
    about = {
        name: {
            "task": task,
            "usage": "%(prog)s [--config FILE] [--GROUP.SETTING VALUE ...]",
            "description": TRAINER_TASKS[name],
            "epilog": f"examples:\n{indent(TASKS[name].examples, '  ')}",
        }
        for name, task in tasks.items()
    }
    try:
        with signals_end_the_process(), quiet_lightning():
            DoLaCLI(
                JanusModule,
                RequestDataModule,
                trainer_class=TaskTrainer,
                save_config_callback=None,
                trainer_defaults={
                    "logger": False,
                    "enable_checkpointing": False,
                    "enable_model_summary": False,
                    "callbacks": [StopOnSignal()],
                },
                parser_class=Parser,
                parser_kwargs={"description": ABOUT, **PARSER, **about},
                auto_configure_optimizers=False,
                args=args,
            )
    except MisconfigurationException as error:
        raise SystemExit(fail(trainer_message(error), code=1)) from None
    except Interrupted as interrupted:
        raise SystemExit(_stop(interrupted)) from None


def _check_world_size(world_size: int, environment: Mapping[str, str]) -> None:
    """Check that the trainer knows of all processes that a launcher has started.

    Raises:
        UserError: If it does not: each process would make all images.
    """
    for launcher, variable in _LAUNCHERS.items():
        started = environment.get(variable, "")
        if started.isdecimal() and int(started) > 1 and int(started) != world_size:
            raise UserError(
                f"trainer.devices: {launcher} has started {started} processes ({variable}), and the"
                f" trainer uses {world_size}, so that each would make everything; expected"
                f" trainer.devices times trainer.num_nodes to be {started}, or no {launcher}"
            )


def _stop(interrupted: Interrupted) -> int:
    """Report that the run was stopped, and return the exit code."""
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        print(f"{interrupted}; the same command continues from there", file=sys.stderr)
        if interrupted.requeue:
            try:
                requeue_slurm_job()
            except (OSError, subprocess.CalledProcessError) as error:
                fail(f"scontrol requeue: {error}", code=1)
    return interrupted.exit_code


def _task_of(parser: LightningArgumentParser) -> TrainerTask:
    assert isinstance(parser, Parser)
    assert parser.task is not None
    return parser.task


def _seed(seed: int | None) -> int:
    """Return the seed of the model for Lightning; null, which it cannot be, is reported later."""
    return int(seed or 0)  # of a plain type, which YAML can write


def trainer_message(error: Exception) -> str:
    """Return the message for an error of Lightning about the trainer's settings."""
    wants_gpu = re.search("gpu|cuda|accelerator", str(error), re.IGNORECASE)
    if not wants_gpu or torch.cuda.is_available():
        return f"trainer: {error}"
    if "accelerator='cpu'" in str(error):
        return f"trainer: {error}; strategies that run without a GPU are auto, ddp and fsdp2"
    return f"trainer: {error}; on a machine without a GPU add --trainer.accelerator cpu"
