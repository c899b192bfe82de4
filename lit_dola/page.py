"""HTML pages from the templates beside this file: one file each, no server and no network."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lit_dola import __version__
from lit_dola.run_folder import Record, write_atomically

OWN_KEYS = ("file", "prompt", "prompt_index", "image_index", "metadata", "inspection")
"""Of a record: what is the image's own; everything else is a setting of the run."""


def write_page(path: Path, template: str, **content: Any) -> None:
    """Render a template and write it; what a user wrote is escaped.

    Args:
        path: Where to.
        template: File name in ``lit_dola/templates``.
        content: What the template is given.
    """
    stream = _environment().get_template(template).stream(version=__version__, **content)
    stream.enable_buffering(1000)
    write_atomically(path, (part.encode() for part in stream))


def settings_of(record: Record) -> dict[str, Any]:
    """The settings that an image was made with."""
    return {name: value for name, value in record.items() if name not in OWN_KEYS}


def common_settings(records: Iterable[Record]) -> dict[str, Any]:
    """The settings that are the same in all records."""
    common: dict[str, Any] | None = None
    for record in records:
        settings = settings_of(record)
        if common is None:
            common = settings
        elif common.items() != settings.items():
            common = {
                name: value
                for name, value in common.items()
                if name in settings and settings[name] == value
            }
    return common or {}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lit_dola"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = _plain
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment


def _plain(value: Any) -> str:
    """A value as a person reads it: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
