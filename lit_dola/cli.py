"""The command line: a table of tasks on top of LightningCLI, and errors meant for users.

Parsing runs nothing: a task runs once its settings are known to be valid.
"""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from lit_dola import __version__
from lit_dola.callbacks.image_logger import ImageLogger
from lit_dola.callbacks.progress import GenerationProgressBar, quiet_lightning
from lit_dola.callbacks.run_writer import find_writer
from lit_dola.callbacks.signals import (
    Interrupted,
    StopOnSignal,
    leave_process_group,
    requeue_slurm_job,
    signals_end_the_process,
)
from lit_dola.callbacks.writer import ImageWriter
from lit_dola.data.datamodule import PromptDataModule
from lit_dola.data.old_names import rename_arguments, rename_config, rename_environment
from lit_dola.errors import RankError, UserError, printable, refuse_null, suggestion
from lit_dola.evaluation import EvaluationTrainer
from lit_dola.reports.compare import compare
from lit_dola.tasks.generate import LitDoLa
from lit_dola.tasks.recommended import recommended_settings

_log = logging.getLogger(__name__)
_UNKNOWN = re.compile(
    r"unrecognized arguments: --(\S+)|does not accept option '(\S+)'|invalid choice: '(\w+)'"
)
"""How jsonargparse reports an unknown option, key or subcommand."""

ENV_PREFIX = "LIT_DOLA"
"""Prefix of environment variables: ``LIT_DOLA_PREDICT__MODEL__ALPHA=0.2``."""
EXIT_SKIPPED = 3
"""Exit code of a run that made everything except some prompts or images, which it lists."""
CALLBACKS: dict[str, type[Callback]] = {"writer": ImageWriter, "image_logger": ImageLogger}
"""Callbacks with settings of their own, by group."""
LINKED = ("model_path", "roles", "parallel_size", "images_per_batch")
"""Settings of the model that the data module needs, too."""


class TrainerTask(NamedTuple):
    """A task that needs a model, prompts and a trainer: a method of :class:`EvaluationTrainer`."""

    hidden: set[str]
    """Arguments of the method that the command line does not offer."""


class PlainTask(NamedTuple):
    """A task that needs neither model nor trainer."""

    description: str
    function: Callable[..., Any]
    """Its arguments are those of the command line."""
    positional: dict[str, dict[str, Any]]
    """Arguments without a flag, and their options for ``add_argument``."""
    run: Callable[[Namespace], None]


def _compare(settings: Namespace) -> None:
    for note in compare(settings.runs, settings.output, settings.seed, settings.copy_images):
        _log.warning(note)
    print(printable(str(Path(settings.output) / "index.html")))


_NOT_OFFERED = {"model", "dataloaders", "datamodule", "return_predictions", "ckpt_path"}
TASKS: dict[str, TrainerTask | PlainTask] = {
    "predict": TrainerTask(hidden={*_NOT_OFFERED, "weights_only"}),
    "evaluate": TrainerTask(hidden=_NOT_OFFERED),
    "compare": PlainTask(
        "Write a page that shows runs side by side, with a blind comparison.",
        compare,
        {"runs": {"nargs": "+", "type": str, "help": "Folders that predict has written."}},
        _compare,
    ),
}
"""The subcommands."""


class Parser(LightningArgumentParser):
    """Reports an error in one line, without jsonargparse's usage message, and knows old names."""

    _config_file: Any = None
    subcommands_action: Any = None
    notes: ClassVar[list[str]] = []
    """About old names, of this parser and those of subcommands."""

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the action that subcommands are added to; Lightning does not."""
        self.subcommands_action = super().add_subcommands(*args, **kwargs)
        return self.subcommands_action

    def parse_args(self, args: Any = None, namespace: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse arguments, accepting the old names of settings."""
        args, notes = rename_arguments(sys.argv[1:] if args is None else args)
        self.notes.extend(notes)
        return super().parse_args(_configs_first(args), namespace, *rest, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a configuration, remembering its path for error messages."""
        self._config_file = path
        try:
            return super().parse_path(path, *args, **kwargs)
        finally:
            self._config_file = None

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration, accepting the old names of settings."""
        try:
            config = yaml.safe_load(content)
        except yaml.YAMLError:
            config = None  # jsonargparse reports what is wrong
        if isinstance(config, dict):
            config, notes = rename_config(config)
            if notes:
                self.notes.extend(notes)
                content = yaml.safe_dump(config)
        return super().parse_string(content, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Exit with code 2 and one line."""
        where = f"{self._config_file}: " if self._config_file else ""
        raise SystemExit(_fail(where + message + self._suggestion(message), code=2))

    def _suggestion(self, message: str) -> str:
        unknown = _UNKNOWN.search(message)
        if not unknown:
            return ""
        subcommands = dict(getattr(self.subcommands_action, "choices", None) or {})
        known = [*subcommands]
        for parser in (self, *subcommands.values()):
            known += parser.get_defaults(skip_validation=True).keys()
        return suggestion(next(filter(None, unknown.groups())).split("=")[0], known)


def _configs_first(args: Sequence[str]) -> list[str]:
    """Move ``--config`` before the flags of its subcommand, so that flags win wherever they are."""
    place = next((place for place, arg in enumerate(args) if arg in TASKS), len(args))
    before, after = [*args[: place + 1]], [*args[place + 1 :]]
    flags = []
    while after:
        arg = after.pop(0)
        if arg == "--config" and after:
            before += [arg, after.pop(0)]
        elif arg.startswith("--config="):
            before.append(arg)
        else:
            flags.append(arg)
    return before + flags


class DoLaCLI(LightningCLI):
    """LightningCLI with the tasks of :data:`TASKS`; there is nothing to fit, validate or test."""

    parser: Parser

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Add ``--version`` and the tasks that need neither a model nor a trainer."""
        super().setup_parser(*args, **kwargs)
        self.parser.add_argument("--version", action="version", version=f"lit-dola {__version__}")
        for name, task in TASKS.items():
            if isinstance(task, PlainTask):
                parser = self.init_parser(description=task.description, **self.parser_kwargs)
                for argument, options in task.positional.items():
                    parser.add_argument(argument, **options)
                parser.add_function_arguments(task.function, skip=set(task.positional))
                self.parser.subcommands_action.add_subcommand(name, parser, help=task.description)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the trainer's tasks, and the arguments of each that are not offered."""
        return {name: task.hidden for name, task in TASKS.items() if isinstance(task, TrainerTask)}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks, and pass the model's settings on to the data module."""
        for group, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, group)
        for name in LINKED:
            parser.link_arguments(f"model.{name}", f"data.{name}")
        # One seed, not two.
        parser.link_arguments("model.seed", "seed_everything", compute_fn=_seed)

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
            self._parse_again_if_the_checkpoint_recommends(name, silent)
        _on_first_rank(_log.warning, dict.fromkeys(Parser.notes))
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
            _on_first_rank(_log.info, [f"{path} recommends {', '.join(used)}"])

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
        for group, owner in {"model": LitDoLa, "data": PromptDataModule, **CALLBACKS}.items():
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
            raise UserError(_trainer_message(error)) from error

    def predict(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Generate; the images are written and not kept in memory."""
        self.trainer.predict(model, datamodule=datamodule, return_predictions=False)
        if writer := find_writer(self.trainer):
            writer.check_complete(self.trainer)
        leave_process_group()
        self._exit_if_skipped()

    def evaluate(self, model: LightningModule, datamodule: LightningDataModule, **how: Any) -> None:
        """Evaluate, see :meth:`lit_dola.evaluation.EvaluationTrainer.evaluate`."""
        cast(EvaluationTrainer, self.trainer).evaluate(
            cast(LitDoLa, model), cast(PromptDataModule, datamodule), **how
        )
        leave_process_group()
        self._exit_if_skipped()

    def _exit_if_skipped(self) -> None:
        writer = find_writer(self.trainer)
        if writer and writer.skipped:
            where = ", ".join(str(folder / "errors.jsonl") for folder in writer.skipped)
            skipped = f"{sum(writer.skipped.values())} skipped, see {where}"
            raise SystemExit(_fail(skipped, EXIT_SKIPPED))


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
    _on_first_rank(_log.warning, rename_environment(os.environ, ENV_PREFIX))
    try:
        with signals_end_the_process(), quiet_lightning():
            DoLaCLI(
                LitDoLa,
                PromptDataModule,
                trainer_class=EvaluationTrainer,
                save_config_callback=None,
                trainer_defaults={
                    "logger": False,
                    "enable_checkpointing": False,
                    "enable_model_summary": False,
                    "callbacks": [StopOnSignal()],
                },
                parser_class=Parser,
                parser_kwargs={"default_env": True, "env_prefix": ENV_PREFIX},
                auto_configure_optimizers=False,
                args=args,
            )
    except UserError as error:
        # Every rank of a machine hits the same error, unless it is local to one.
        silent = not _is_first_local_rank() and not isinstance(error, RankError)
        raise SystemExit(1 if silent else _fail(str(error), code=1)) from None
    except MisconfigurationException as error:
        raise SystemExit(_fail(_trainer_message(error), code=1)) from None
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
                _fail(f"scontrol requeue: {error}", code=1)
    return interrupted.exit_code


def _is_first_local_rank() -> bool:
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def _on_first_rank(log: Callable[[str], None], notes: Iterable[str]) -> None:
    """Log notes on the first rank of each machine."""
    if _is_first_local_rank():
        for note in notes:
            log(note)


def _trainer_message(error: Exception) -> str:
    wants_gpu = re.search("gpu|cuda|accelerator", str(error), re.IGNORECASE)
    if not wants_gpu or torch.cuda.is_available():
        return f"trainer: {error}"
    if "accelerator='cpu'" in str(error):
        return f"trainer: {error}; strategies that run without a GPU are auto, ddp and fsdp2"
    return f"trainer: {error}; on a machine without a GPU add --trainer.accelerator cpu"


def _seed(seed: int | None) -> int:
    """Return the seed of the model for Lightning; null, which it cannot be, is reported later."""
    return int(seed or 0)  # of a plain type, which YAML can write


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
