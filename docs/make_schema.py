"""JSON Schema of a configuration: ``python -m docs.make_schema > configs/schema.json``.

That of another task: ``python -m docs.make_schema answer > configs/schema-answer.json``.

jsonargparse writes it from signatures and docstrings. Settings of the trainer that name a class, of
Lightning or another package, are left open: listing every class would take megabytes, and depend on
the packages that are installed.
"""

import io
import json
import sys
from contextlib import redirect_stdout
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch import Trainer

from lit_dola.cli.tasks import PASSED, ParsedTask
from lit_dola.registry import resolve

_NOT_IN_YAML: set[str | int] = {"scorer"}
_CLASSES = ("accelerator", "strategy", "logger", "callbacks", "profiler", "plugins", "precision")


def task_of(name: str) -> ParsedTask:
    """Return a task that has a configuration; ``evaluate-answer`` evaluates ``answer``."""
    name, _, evaluated = name.partition("-")
    return ParsedTask(name, evaluated or "predict")


def config_schema(name: str = "evaluate") -> dict[str, Any]:
    """Return the schema of a configuration of a task.

    Args:
        name: The task; the schema of ``evaluate`` is good for ``predict``, too.
    """
    task = task_of(name)
    set_parsing_settings(add_print_completion_argument=True)
    parser = ArgumentParser()
    parser.add_class_arguments(Trainer, "trainer", skip=set(_CLASSES))
    for group, owner in task.groups.items():
        parser.add_class_arguments(owner, group)
    parser.add_function_arguments(resolve(task.task.function), skip=PASSED | _NOT_IN_YAML)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            parser.parse_args(["--print_completion", "jsonschema"])
    except SystemExit:
        schema: dict[str, Any] = json.loads(printed.getvalue())
    schema["properties"]["trainer"]["properties"] |= {name: {} for name in _CLASSES}
    if name == "evaluate":
        schema["properties"]["scorer"] = {"description": "Class whose objects score an image."}
    schema.pop("required", None)
    return schema


if __name__ == "__main__":
    print(json.dumps(config_schema(*sys.argv[1:]), indent=1))
