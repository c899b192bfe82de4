"""Command and configuration that reproduce images."""

import json
import re
import shlex
from collections.abc import Sequence
from functools import cache
from inspect import signature
from typing import Any

import yaml

from lit_dola.runs.records import ImageRecord
from lit_dola.tasks.generate import LitDoLa

_FOLDER = "outputs/again"
_NOT_AS_IT_IS = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters of JSON that YAML does not keep as they are."""


@cache
def flags() -> dict[str, str]:
    """Return the flag of each setting that a record may have and a run may be given."""
    own = {name: f"--model.{name}" for name in signature(LitDoLa).parameters}
    others = {"precision": "trainer", "format": "writer", "quality": "writer"}
    return {**own, **{name: f"--{group}.{name}" for name, group in others.items()}}


@cache
def not_given() -> dict[str, Any]:
    """Return values of settings that cannot be given on the command line; they are the defaults."""
    return {"roles": "template", "quality": None, **dict.fromkeys(LitDoLa.texts)}


def command_for(records: Sequence[ImageRecord], folder: str = _FOLDER) -> str:
    """Return the command that reproduces images, for a shell.

    Args:
        records: Records of images of one prompt, with the same settings.
        folder: Folder of the new run.

    Example:
        >>> made = pipeline("a red circle", parallel_size=2)
        >>> command_for(made.records)
        'lit-dola predict --model.model_path checkpoints/shapes-janus --model.dola true ...'
    """
    parts = ["lit-dola predict"]
    for group, settings in _settings(records, folder).items():
        parts += [f"--{group}.{name} {_quoted(value)}" for name, value in settings.items()]
    return " ".join(parts)


def config_for(records: Sequence[ImageRecord], folder: str = _FOLDER) -> str:
    """Return the configuration that reproduces images, in YAML; arguments as above."""
    found = _settings(records, folder)
    found["data"]["prompts"] = {k: _Text(text) for k, text in found["data"]["prompts"].items()}
    for name in LitDoLa.texts:
        if isinstance(text := found["model"].get(name), str):
            found["model"][name] = _Text(text)
    written = yaml.dump(found, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return f"# lit-dola predict --config again.yaml\n{written}"


def _settings(records: Sequence[ImageRecord], folder: str) -> dict[str, dict[str, Any]]:
    """Return every setting that shaped images and that a run may be given, by group."""
    first = records[0]
    found: dict[str, dict[str, Any]] = {"trainer": {}, "model": {}, "data": {}, "writer": {}}
    for name, value in first.settings.items():
        if name in flags() and value != not_given().get(name, ...):
            group, _, setting = flags()[name].removeprefix("--").partition(".")
            found[group][setting] = value
    found["data"] = {
        "prompts": {first.prompt_index: first.prompt},
        "images": [record.image_index for record in records],
    }
    found["writer"]["output_dir"] = folder
    return {group: settings for group, settings in found.items() if settings}


def _quoted(value: Any) -> str:
    if isinstance(value, str):
        return shlex.quote(value)
    text = json.dumps(value, ensure_ascii=False)
    return shlex.quote(_NOT_AS_IT_IS.sub(lambda it: f"\\u{ord(it[0]):04x}", text))


class _Text(str):
    """Text to quote in YAML, so that it is not read as a number, a date or null."""


class _Dumper(yaml.SafeDumper):
    """Dumper that knows :class:`_Text`."""


_Dumper.add_representer(
    _Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)
