"""The command line: LightningCLI with ``predict`` and ``evaluate``, and errors for people."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers.utils.logging import disable_progress_bar

from lit_dola.compare import compare
from lit_dola.data import PromptDataModule
from lit_dola.errors import RankError, UserError, suggestion
from lit_dola.evaluation import EvaluationTrainer
from lit_dola.image_logger import ImageLogger
from lit_dola.interrupt import GracefulStop, Interrupted, requeue_slurm_job, signals_end_the_process
from lit_dola.module import LitDoLa
from lit_dola.progress import GenerationProgressBar
from lit_dola.quiet import quiet_lightning
from lit_dola.writer import ImageWriter, find_writer

_log = logging.getLogger(__name__)
_UNKNOWN = re.compile(
    r"unrecognized arguments: --(\S+)|does not accept option '(\S+)'|invalid choice: '(\w+)'"
)
"""How jsonargparse says that it does not know an option, a key, or a subcommand."""

ENV_PREFIX = "LIT_DOLA"
"""Of environment variables: ``LIT_DOLA_PREDICT__MODEL__ALPHA=0.2``."""
EXIT_SKIPPED = 3
"""Exit code of a run that has made all but some prompts or images, which it lists."""
CALLBACKS: dict[str, type[Callback]] = {"writer": ImageWriter, "image_logger": ImageLogger}
"""By group of settings, what every run has beside the model and the data."""
LINKED = ("model_path", "roles", "parallel_size", "images_per_batch")
"""Settings of the model that the data module needs as well."""


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, without the usage that jsonargparse puts before it."""

    _config_file: Any = None
    subcommands_action: Any = None

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        """Keep what subcommands are added to, which Lightning does not."""
        self.subcommands_action = super().add_subcommands(*args, **kwargs)
        return self.subcommands_action

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a configuration, and remember which for the message of an error in it."""
        self._config_file = path
        try:
            return super().parse_path(path, *args, **kwargs)
        finally:
            self._config_file = None

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Exit with 2."""
        where = f"{self._config_file}: " if self._config_file else ""
        raise SystemExit(_fail(where + message + self._suggestion(message), code=2))

    def _suggestion(self, message: str) -> str:
        unknown = _UNKNOWN.search(message)
        if not unknown:
            return ""
        subcommands = dict(getattr(self.subcommands_action, "choices", None) or {})
        known = [*subcommands]
        for parser in (self, *subcommands.values()):
            known += [option.lstrip("-") for option in parser._option_string_actions]
        return suggestion(next(filter(None, unknown.groups())).split("=")[0], known)


class DoLaCLI(LightningCLI):
    """``predict``, ``evaluate`` and ``compare``: there is nothing to fit, validate or test."""

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Add ``compare``, which needs neither a model nor a trainer."""
        super().setup_parser(*args, **kwargs)
        description = "Write a page that shows runs side by side, with a blind comparison."
        parser = self.init_parser(description=description, **self.parser_kwargs)
        parser.add_argument("runs", nargs="+", type=Path, help="Folders that predict has written.")
        parser.add_function_arguments(compare, skip={"runs"})
        cast(Any, self.parser).subcommands_action.add_subcommand(
            "compare", parser, help=description
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; then run ``compare`` and end, if it was asked for."""
        super().parse_arguments(parser, args)
        if self.config["subcommand"] == "compare":
            asked = self.config["compare"]
            notes = compare(asked.runs, asked.output, asked.seed, asked.copy_images)
            for note in notes:
                _log.warning(note)
            print(asked.output / "index.html")
            raise SystemExit(0)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Subcommands, and the arguments of the trainer's methods that are not offered."""
        hidden = {"model", "dataloaders", "datamodule", "return_predictions", "ckpt_path"}
        return {"predict": {*hidden, "weights_only"}, "evaluate": hidden}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the writer, and hand the model's settings to the data module."""
        for group, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, group)
        for name in LINKED:
            parser.link_arguments(f"model.{name}", f"data.{name}")
        parser.link_arguments("model.seed", "seed_everything", compute_fn=int)  # one seed, not two

    def instantiate_classes(self) -> None:
        """Make everything that the settings name.

        Raises:
            UserError: If a class cannot be made, as a logger whose package is not installed.
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
        """Make the trainer.

        Raises:
            UserError: If its settings cannot be used together, or on this machine.
        """
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
            raise UserError(_trainer_message(error)) from error

    def predict(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        """Generate; what is written is not kept in memory as well."""
        self.trainer.predict(model, datamodule=datamodule, return_predictions=False)
        self._tell_what_was_skipped()

    def evaluate(self, model: LightningModule, datamodule: LightningDataModule, **how: Any) -> None:
        """Evaluate, see :meth:`lit_dola.evaluation.EvaluationTrainer.evaluate`."""
        cast(EvaluationTrainer, self.trainer).evaluate(
            cast(LitDoLa, model), cast(PromptDataModule, datamodule), **how
        )
        self._tell_what_was_skipped()

    def _tell_what_was_skipped(self) -> None:
        writer = find_writer(self.trainer)
        if writer and writer.num_failures:
            skipped = f"{writer.num_failures} skipped, see {writer.output_dir / 'errors.jsonl'}"
            raise SystemExit(_fail(skipped, EXIT_SKIPPED))


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments; those of the process if None.

    Exits with 1, and one line on stderr, for what the user can mend; with 2 for a wrong setting;
    with 3 where some prompts or images were skipped; with 128 and its number for a signal.
    """
    if os.getcwd() not in sys.path:  # where a class that a setting names may lie
        sys.path.insert(0, os.getcwd())
    own_messages = logging.StreamHandler()
    own_messages.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("lit_dola").handlers = [own_messages]
    disable_progress_bar()
    set_parsing_settings(add_print_completion_argument=True)
    # FSDP2, where the module shards its layers itself; also without a GPU, by its class.
    StrategyRegistry.register("fsdp", ModelParallelStrategy, override=True)
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
                    "callbacks": [GenerationProgressBar(), GracefulStop()],
                },
                parser_class=Parser,
                parser_kwargs={"default_env": True, "env_prefix": ENV_PREFIX},
                auto_configure_optimizers=False,
                args=args,
            )
    except UserError as error:
        # The ranks of one machine meet the same error, if it is not one of the run itself.
        first = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
        silent = not first and not isinstance(error, RankError)
        raise SystemExit(1 if silent else _fail(str(error), code=1)) from None
    except MisconfigurationException as error:
        raise SystemExit(_fail(_trainer_message(error), code=1)) from None
    except Interrupted as interrupted:
        raise SystemExit(_stop(interrupted)) from None


def _stop(interrupted: Interrupted) -> int:
    """Say that the run was stopped; gives the exit code."""
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        print(f"{interrupted}; the same command goes on from there", file=sys.stderr)
        if interrupted.requeue:
            try:
                requeue_slurm_job()
            except (OSError, subprocess.CalledProcessError) as error:
                _fail(f"scontrol requeue: {error}", code=1)
    return interrupted.exit_code


def _trainer_message(error: Exception) -> str:
    return f"trainer: {error}; on a machine without a GPU add --trainer.accelerator cpu"


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
