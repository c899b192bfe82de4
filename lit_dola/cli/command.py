"""The command line: tasks on top of LightningCLI, and errors meant for users.

Parsing runs nothing: a task runs once its settings are known to be valid.
"""

import json
import logging
import os
import re
import subprocess
import sys
from inspect import signature
from typing import Any, cast

from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from lit_dola import __version__
from lit_dola.callbacks.progress import GenerationProgressBar, quiet_lightning
from lit_dola.callbacks.run_writer import find_writer
from lit_dola.callbacks.signals import (
    Interrupted,
    StopOnSignal,
    leave_process_group,
    requeue_slurm_job,
    signals_end_the_process,
)
from lit_dola.cli.messages import fail, is_first_local_rank, on_first_rank, trainer_message
from lit_dola.cli.parser import Parser
from lit_dola.cli.tasks import (
    ENV_PREFIX,
    EXIT_SKIPPED,
    TASKS,
    PlainTask,
    TaskTrainer,
    TrainerTask,
    evaluated_task,
)
from lit_dola.data.base import RequestDataModule
from lit_dola.data.old_names import rename_environment
from lit_dola.errors import RankError, UserError, printable, refuse_null
from lit_dola.evaluation import EvaluationTrainer
from lit_dola.tasks.base import JanusModule
from lit_dola.tasks.generate import LitDoLa
from lit_dola.tasks.recommended import recommended_settings

_log = logging.getLogger(__name__)
_PARSER = {"default_env": True, "env_prefix": ENV_PREFIX}


class DoLaCLI(LightningCLI):
    """LightningCLI with the tasks of :data:`TASKS`; there is nothing to fit, validate or test."""

    parser: Parser

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Add ``--version`` and the tasks that need neither a model nor a trainer."""
        super().setup_parser(*args, **kwargs)
        self.parser.add_argument("--version", action="version", version=f"lit-dola {__version__}")
        for name, task in TASKS.items():
            if isinstance(task, PlainTask):
                parser = self.init_parser(description=task.description, **_PARSER)
                for argument, options in task.positional.items():
                    parser.add_argument(argument, **options)
                parser.add_function_arguments(task.function, skip=set(task.positional))
                self.parser.subcommands_action.add_subcommand(name, parser, help=task.description)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the trainer's tasks, and the arguments of each that are not offered."""
        return {name: task.hidden for name, task in TASKS.items() if isinstance(task, TrainerTask)}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the trainer, and the model, the data and the callbacks of the parser's task."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        defaults = dict(self.trainer_defaults)
        defaults.pop("callbacks")
        parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})
        for group, owner in _task_of(parser).groups.items():
            parser.add_lightning_class_args(owner, group)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Pass the model's settings on to the data module."""
        for name in _task_of(parser).linked:
            parser.link_arguments(f"model.{name}", f"data.{name}")
        if "seed" in signature(_task_of(parser).model).parameters:  # one seed, not two
            parser.link_arguments("model.seed", "seed_everything", compute_fn=_seed)
        else:
            parser.set_defaults(seed_everything=0)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with what the checkpoint recommends as defaults.

        LightningCLI is kept from seeding for tasks that draw nothing.
        """
        given = sys.argv[1:] if args is None else [*args]
        silent = [arg for arg in given if not arg.startswith("--print_config")]
        Parser.notes = []
        self.config = parser.parse_args(silent)
        name = self.config["subcommand"]
        if isinstance(TASKS[name], PlainTask):
            self.config[name]["seed_everything"] = False
        else:
            if _task_of(self._parser(name)).model is LitDoLa:
                self._parse_again_if_the_checkpoint_recommends(name, silent)
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
        task, settings = TASKS[name], self.config[name]
        if isinstance(task, PlainTask):
            task.run(settings)
            raise SystemExit(0)
        for group, owner in _task_of(self._parser(name)).groups.items():
            refuse_null(owner, settings[group].as_dict(), f"{group}.")
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
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if not isinstance(cause, ImportError):
                raise
            raise UserError(f"trainer: {cause}") from error

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
            callbacks.append(GenerationProgressBar())
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
            raise UserError(trainer_message(error)) from error

    def predict(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Predict; the results are written and not kept in memory."""
        self.trainer.predict(model, datamodule=datamodule, return_predictions=False)
        if writer := find_writer(self.trainer):
            writer.check_complete(self.trainer)
        leave_process_group()
        self._exit_if_skipped()

    def answer(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Answer questions, as :meth:`predict` makes images."""
        self.predict(model, datamodule)

    def rank(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Rank, as :meth:`predict` makes images."""
        self.predict(model, datamodule)

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


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments; those of the process if None.

    Exits with 1, and one line on stderr, for an error that the user can fix; with 2 for an invalid
    setting; with 3 if some prompts or images were skipped; with 128 plus its number for a signal.
    """
    if os.getcwd() not in sys.path:  # a setting may name a class in a file there
        sys.path.insert(0, os.getcwd())
    own_messages = logging.StreamHandler()
    own_messages.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("lit_dola").handlers = [own_messages]
    logging.getLogger("lit_dola").setLevel(logging.INFO)
    disable_progress_bar()
    set_verbosity_error()
    set_parsing_settings(add_print_completion_argument=True)
    for name in ("fsdp2", "fsdp"):  # by class, it also runs without a GPU
        StrategyRegistry.register(name, ModelParallelStrategy, override=True)
    on_first_rank(_log.warning, rename_environment(os.environ, ENV_PREFIX))
    tasks = {name: task for name, task in TASKS.items() if isinstance(task, TrainerTask)}
    tasks["evaluate"] = evaluated_task(sys.argv[1:] if args is None else args, os.environ)
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
                parser_kwargs={**_PARSER, **{name: {"task": task} for name, task in tasks.items()}},
                auto_configure_optimizers=False,
                args=args,
            )
    except UserError as error:
        # Every rank of a machine hits the same error, unless it is local to one.
        silent = not is_first_local_rank() and not isinstance(error, RankError)
        raise SystemExit(1 if silent else fail(str(error), code=1)) from None
    except MisconfigurationException as error:
        raise SystemExit(fail(trainer_message(error), code=1)) from None
    except Interrupted as interrupted:
        raise SystemExit(_stop(interrupted)) from None


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
