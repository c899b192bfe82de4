"""Running a task that loads a model, on top of LightningCLI.

Parsing runs nothing: a task runs once its settings are known to be valid.
"""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from inspect import signature
from traceback import walk_tb
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from lit_dola.callbacks.quiet import quiet_lightning
from lit_dola.callbacks.run_writer import find_writer
from lit_dola.callbacks.signals import (
    Interrupted,
    StopOnSignal,
    leave_process_group,
    requeue_slurm_job,
    signals_end_the_process,
)
from lit_dola.cli.arguments import Arguments
from lit_dola.cli.configs import locate_inputs, refuse_missing_inputs
from lit_dola.cli.dry_run import describe
from lit_dola.cli.messages import fail, on_first_rank
from lit_dola.cli.parser import parser_options
from lit_dola.cli.plain import parser_of_all, plain_parser
from lit_dola.cli.tasks import (
    PASSED,
    TRAINER_DEFAULTS,
    ParsedTask,
    Parser,
    all_parsers,
    own_arguments,
)
from lit_dola.data.base import RequestDataModule
from lit_dola.errors import UserError
from lit_dola.janus.recommended import recommended_settings
from lit_dola.messages import causes, first_line, printable
from lit_dola.registry import TASKS, AppTask, resolve
from lit_dola.settings.declared import refuse_null
from lit_dola.tasks.base import JanusModule
from lit_dola.tasks.generate import LitDoLa

_log = logging.getLogger(__name__)
EXIT_SKIPPED = 3
"""Exit code of a complete run that skipped some entries or results, which it lists."""
_LAUNCHERS = {
    "torchrun": "WORLD_SIZE",
    "mpirun": "OMPI_COMM_WORLD_SIZE",
    "srun": "SLURM_STEP_NUM_TASKS",
}
"""Programs that start several processes, and their variables for the number of them."""
_COPIES = re.compile("spawn|fork|notebook")
"""Strategies that copy a running process."""


class DoLaCLI(LightningCLI):
    """LightningCLI for the task that the command line asks for."""

    parser: Parser

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.task = ParsedTask.of(arguments)
        super().__init__(
            JanusModule,
            RequestDataModule,
            save_config_callback=None,
            trainer_defaults={"callbacks": [StopOnSignal()]},
            auto_configure_optimizers=False,
            args=arguments.settings,
            run=False,
        )

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Build the parser of the task."""
        name = self.task.name
        prog = f"{os.path.basename(sys.argv[0])} {name}"
        header = [f"lightning.pytorch=={lightning.__version__}"]  # of a printed configuration
        self.parser = self.task.parser(prog=prog, dump_header=header, **parser_options(name))

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, with the settings that the checkpoint recommends as defaults.

        LightningCLI is kept from seeding before the seed of the model is known.
        """
        self.config = parser.parse_args(args)
        for group, owner in self.task.groups.items():
            refuse_null(owner, self.config[group].as_dict(), f"{group}.")
        locate_inputs(self.config, self.arguments.config_folders)
        if issubclass(self.task.module, LitDoLa) and self._take_recommended():
            locate_inputs(self.config, self.arguments.config_folders)
        self.config["seed_everything"] = int(self.config.model.get("seed") or 0)
        if self.arguments.printing:
            parser.parse_args([*args, *self.arguments.printing])  # prints and ends

    def _take_recommended(self) -> bool:
        before = self.config.model
        recommended = recommended_settings(before.model_path, LitDoLa)
        if not recommended:
            return False
        self.parser.set_defaults({f"model.{key}": recommended[key] for key in recommended})
        self.config = self.parser.parse_args(self.arguments.settings)
        now = self.config.model
        used = [f"{key} {json.dumps(now[key])}" for key in recommended if now[key] != before[key]]
        if used:
            path = printable(before.model_path)
            on_first_rank(_log.info, [f"{path} recommends {', '.join(used)}"])
        return True

    def before_instantiate_classes(self) -> None:
        """Check what types do not."""
        refuse_missing_inputs(self.config, self.arguments.config_folders)
        strategy = str(self.config.trainer.get("strategy"))
        if _COPIES.search(strategy):
            raise UserError(
                f"{strategy} copies a running process",
                "ddp, which starts one process per device",
                setting="trainer.strategy",
            )

    def instantiate_classes(self) -> None:
        """Create everything that the settings name."""
        if self.config.get("dry_run"):
            self._run_dry()
        try:
            super().instantiate_classes()
        except ValueError as error:
            *_, cause = causes(error)
            if not isinstance(cause, ImportError):
                raise
            raise UserError(str(cause), setting="trainer") from error

    def _run_dry(self) -> None:
        """Print what the run would generate, and end."""
        found = self.parser.instantiate_classes(self.config)
        for line in describe(found.model, found.data, found.writer, found.trainer):
            print(line)
        raise SystemExit(0)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the trainer."""
        settings = self.config_init.trainer
        given = settings.get("callbacks") or []
        callbacks = [*given] if isinstance(given, list) else [given]
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        off = settings.get("barebones") or settings.get("enable_progress_bar") is False
        if "progress" in self.config_init and not (has_bar or off):
            # Last, so that it ends after the writer, which waits for all ranks.
            own = self.config_init.progress
            self.trainer_defaults["callbacks"] = [*self.trainer_defaults["callbacks"], own]
        if isinstance(self.task.task, AppTask):  # which takes few of its settings
            own = {**TRAINER_DEFAULTS, "enable_progress_bar": False}
            kwargs = {name: own[name] for name in own if name not in settings} | kwargs
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
            raise UserError(trainer_message(error), setting="trainer") from error
        _check_world_size(trainer.world_size, os.environ)
        return trainer

    def run(self) -> None:
        """Run the task."""
        function = resolve(self.task.task.function)
        given = {
            "trainer": self.trainer,
            "model": self.model,
            "datamodule": self.datamodule,
            "writer": self.config_init.get("writer"),
        }
        names = signature(function).parameters
        passed = {name: value for name, value in given.items() if name in names and name in PASSED}
        own = {name: self.config_init[name] for name in own_arguments(self.task.task)}
        function(**passed, **own)
        leave_process_group()
        writer = find_writer(self.trainer)
        if writer and writer.skipped:
            where = ", ".join(str(folder / "errors.jsonl") for folder in writer.skipped)
            skipped = f"{sum(writer.skipped.values())} skipped, see {where}"
            raise SystemExit(fail(skipped, EXIT_SKIPPED))


def run_model_task(arguments: Arguments) -> None:
    """Run a task that loads a model, see :func:`lit_dola.cli.entry.main`."""
    disable_progress_bar()
    set_verbosity_error()
    # By class, it also runs without a GPU.
    StrategyRegistry.register("fsdp2", ModelParallelStrategy, override=True)
    try:
        with signals_end_the_process(), quiet_lightning():
            DoLaCLI(arguments).run()
    except MisconfigurationException as error:
        raise SystemExit(fail(f"trainer: {trainer_message(error)}", code=1)) from None
    except Interrupted as interrupted:
        continues = not isinstance(TASKS[str(arguments.task)], AppTask)
        raise SystemExit(_stop(interrupted, continues)) from None
    except UserError:
        raise
    except Exception as error:
        _blame_logger(error)
        raise


def _blame_logger(error: Exception) -> None:
    """Raise the error of a logger as a line, e.g. of one that asks for a login."""
    for cause in causes(error):
        frames = (frame for frame, _ in walk_tb(cause.__traceback__))
        if any(isinstance(frame.f_locals.get("self"), Logger) for frame in frames):
            said = f"{type(cause).__name__}: {first_line(cause)}"
            raise UserError(
                said, "a logger that works, or none", setting="trainer.logger"
            ) from error


def print_for_all_tasks(arguments: Arguments) -> None:
    """Parse arguments that concern the settings of all tasks, e.g. ``--print_completion``."""
    parsers = all_parsers()
    plain = {name: plain_parser(name, **parser_options()) for name in TASKS if name not in parsers}
    for parser in parsers.values():
        for action in parser._actions:
            if action.dest == "trainer.strategy":
                # Names alone: the settings of its classes, which shtab would list, are megabytes.
                names = ["fsdp2", *StrategyRegistry.available_strategies()]
                action.choices = [name for name in names if not _COPIES.search(name)]
    parser_of_all({**parsers, **plain}).parse_args(arguments.settings)


def _check_world_size(world_size: int, environment: Mapping[str, str]) -> None:
    """Check that the trainer knows of all processes that a launcher has started."""
    for launcher, variable in _LAUNCHERS.items():
        started = environment.get(variable, "")
        if started.isdecimal() and int(started) > 1 and int(started) != world_size:
            raise UserError(
                f"{launcher} has started {started} processes ({variable}), and the trainer uses"
                f" {world_size}, so that each would generate everything",
                f"trainer.devices times trainer.num_nodes to be {started}, or no {launcher}",
                setting="trainer.devices",
            )


def _stop(interrupted: Interrupted, continues: bool) -> int:
    """Report that the task was stopped, and return the exit code."""
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        more = "; the same command continues from there" if continues else ""
        print(f"{interrupted}{more}", file=sys.stderr)
        if interrupted.requeue:
            try:
                requeue_slurm_job()
            except (OSError, subprocess.CalledProcessError) as error:
                fail(f"scontrol requeue: {error}", code=1)
    return interrupted.exit_code


def trainer_message(error: Exception) -> str:
    """Return the message for an error of Lightning about the trainer's settings."""
    wants_gpu = re.search("gpu|cuda|accelerator", str(error), re.IGNORECASE)
    if not wants_gpu or torch.cuda.is_available():
        return str(error)
    if "accelerator='cpu'" in str(error):
        return f"{error}; strategies that run without a GPU are auto, ddp and fsdp2"
    return f"{error}; on a machine without a GPU add --trainer.accelerator cpu"
