"""Reading ``argv``: the only place that looks at it by hand."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from lit_dola.cli.configs import config_path
from lit_dola.errors import UserError
from lit_dola.settings.texts import decode

ENV_PREFIX = "LIT_DOLA"
"""Prefix of environment variables: ``LIT_DOLA_PREDICT__MODEL__ALPHA=0.2``."""


class Arguments(NamedTuple):
    """The arguments of the command line."""

    task: str | None
    """Name of the task; None if there is none."""
    configs: list[str]
    """Paths of configurations."""
    others: list[str]
    """All other arguments, in their order."""
    printing: list[str]
    """Those that print the configuration in place of running."""

    @property
    def settings(self) -> list[str]:
        """Arguments of the task's parser: configurations come first, so that flags win."""
        return [*(f"--config={path}" for path in self.configs), *self.others]

    @property
    def config_folders(self) -> list[Path]:
        """Folders of the configurations, each once."""
        return [*dict.fromkeys(Path(path).parent for path in self.configs)]

    def evaluated_task(self) -> str:
        """Return the task that ``evaluate`` runs, whose settings its parser must know.

        It is named by ``--task``, a configuration or the environment; mistakes in them are reported
        when all settings are parsed.
        """
        name = os.environ.get(f"{ENV_PREFIX}_EVALUATE__TASK", "predict")
        for path in self.configs:
            name = _task_in(path) or name
        return _known(self.others, "--task")[0].task or name


def read_arguments(args: Sequence[str]) -> Arguments:
    """Read the arguments of the command line, finding its configurations."""
    known, rest = _known(args, "--config", "-c", action="append")
    configs = [config_path(name) for name in known.config or ()]
    name = os.environ.get(f"{ENV_PREFIX}_SUBCOMMAND") if not rest else None
    if rest and not rest[0].startswith("-"):
        name, *rest = rest
    printing = [arg for arg in rest if arg.startswith("--print_config")]
    others = [arg for arg in rest if arg not in printing]
    return Arguments(name, configs, others, printing)


def _known(
    args: Sequence[str], *option: str, action: str = "store"
) -> tuple[argparse.Namespace, list[str]]:
    """Return the value of an option, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(*option, action=action)
    try:
        return parser.parse_known_args([*args])
    except argparse.ArgumentError:  # without a value: reported when all settings are parsed
        return argparse.Namespace(**{option[0].strip("-"): None}), [*args]


def _task_in(path: str) -> str | None:
    """Return the key ``task`` of a configuration; None without one, or if it cannot be read."""
    try:
        config = yaml.safe_load(decode(Path(path).read_bytes()))
    except (OSError, UserError, yaml.YAMLError):
        return None  # reported when the configuration is parsed
    task = config.get("task") if isinstance(config, dict) else None
    return task if isinstance(task, str) else None
