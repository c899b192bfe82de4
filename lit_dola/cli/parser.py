"""The parser of the command line: one-line errors with suggestions."""

import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import DefaultHelpFormatter
from jsonargparse._paths import Path as PathOfConfig

from lit_dola.cli.arguments import ENV_PREFIX
from lit_dola.cli.messages import fail
from lit_dola.errors import within
from lit_dola.messages import suggestion
from lit_dola.settings.declared import SettingsParser
from lit_dola.settings.texts import decode

_UNKNOWN = re.compile(
    r"unrecognized arguments: --(\S+)|does not accept option '(\S+)'|invalid choice: '(\w+)'"
)
"""jsonargparse's messages about an unknown option, key or subcommand."""


CONFIG_HELP = "Path to a configuration file in json or yaml format."


def _read_local_file(path: Any, original: Callable[[Any], str] = PathOfConfig.read_text) -> str:
    """Read a configuration as UTF-8 or by its byte order mark; the locale has no say."""
    if path.is_url or path.is_fsspec or path._std_io:
        return original(path)
    with within(path):
        return decode(Path(path.absolute).read_bytes())


setattr(PathOfConfig, "read_text", _read_local_file)  # noqa: B010  # any configuration's


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Formatter that leaves examples as they are."""


def parser_options(task: str | None = None) -> dict[str, Any]:
    """Return the arguments of the parser of a task, or of the one that knows all tasks."""
    return {
        "default_env": True,
        "env_prefix": ENV_PREFIX if task is None else f"{ENV_PREFIX}_{task.upper()}_",
        "formatter_class": _HelpFormatter,
    }


class OneLineParser(SettingsParser):
    """Parser that reports an error in one line, without jsonargparse's usage message.

    Args:
        only: Keys that are read of some groups of a configuration file; it may have others, which
            other tasks use. None: all.
        options: Arguments of jsonargparse's parser.
    """

    _config_file: Any = None
    other_names: Iterable[str] = ()
    """Further names to suggest for a misspelt one."""

    def __init__(
        self, *args: Any, only: Mapping[str, Container[str]] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.only = only or {}

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a configuration, remembering its path for error messages."""
        self._config_file = path
        try:
            return super().parse_path(path, *args, **kwargs)
        finally:
            self._config_file = None

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration, without the keys that only other tasks use."""
        if self.only:
            try:
                config = yaml.safe_load(content)
            except yaml.YAMLError:
                config = None  # jsonargparse reports what is wrong
            if isinstance(config, dict):
                content = yaml.safe_dump(_without_others(config, self.only))
        return super().parse_string(content, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Exit with code 2 and one line."""
        where = f"{self._config_file}: " if self._config_file else ""
        raise SystemExit(fail(where + message + self._suggestion(message), code=2))

    def _suggestion(self, message: str) -> str:
        unknown = _UNKNOWN.search(message)
        if not unknown:
            return ""
        known = [*self.other_names, *self.get_defaults(skip_validation=True).keys()]
        return suggestion(next(filter(None, unknown.groups())).split("=")[0], known)


def _without_others(config: dict[Any, Any], only: Mapping[str, Container[str]]) -> dict[Any, Any]:
    found = {}
    for name, value in config.items():
        if name not in only:
            found[name] = value
        elif isinstance(value, dict):
            found[name] = {key: part for key, part in value.items() if key in only[name]}
    return {name: value for name, value in found.items() if value != {}}
