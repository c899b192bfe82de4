"""The parser of the command line: one-line errors, and the old names of settings."""

import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Container, Sequence
from typing import Any, ClassVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from lit_dola.cli.messages import fail
from lit_dola.data.old_names import rename_arguments, rename_config
from lit_dola.errors import suggestion

_UNKNOWN = re.compile(
    r"unrecognized arguments: --(\S+)|does not accept option '(\S+)'|invalid choice: '(\w+)'"
)
"""How jsonargparse reports an unknown option, key or subcommand."""


ENV_PREFIX = "LIT_DOLA"
"""Prefix of environment variables: ``LIT_DOLA_PREDICT__MODEL__ALPHA=0.2``."""


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Leaves examples as they are."""


PARSER: dict[str, Any] = {
    "default_env": True,
    "env_prefix": ENV_PREFIX,
    "formatter_class": _HelpFormatter,
}
"""Arguments of every parser."""


class OneLineParser(ArgumentParser):
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
        args = _configs_first(args, self._subcommands())
        return super().parse_args(args, namespace, *rest, **kwargs)

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
        raise SystemExit(fail(where + message + self._suggestion(message), code=2))

    def _suggestion(self, message: str) -> str:
        unknown = _UNKNOWN.search(message)
        if not unknown:
            return ""
        subcommands = self._subcommands()
        known = [*subcommands]
        for parser in (self, *subcommands.values()):
            known += parser.get_defaults(skip_validation=True).keys()
        return suggestion(next(filter(None, unknown.groups())).split("=")[0], known)

    def _subcommands(self) -> dict[str, ArgumentParser]:
        return dict(getattr(self.subcommands_action, "choices", None) or {})


def _configs_first(args: Sequence[str], subcommands: Container[str]) -> list[str]:
    """Move ``--config`` before the flags of its subcommand, so that flags win wherever they are."""
    place = next((place for place, arg in enumerate(args) if arg in subcommands), len(args))
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
