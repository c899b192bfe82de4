"""JSON Schema of a configuration: ``python -m docs.make_schema > configs/schema.json``.

jsonargparse writes it from signatures and docstrings. Settings of the trainer that name a class, of
Lightning or another package, are left open: listing every class would take megabytes, and depend on
the packages that are installed.
"""

import io
import json
from contextlib import redirect_stdout
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch import Trainer

from lit_dola.cli import CALLBACKS, LINKED, DoLaCLI
from lit_dola.data.datamodule import PromptDataModule
from lit_dola.evaluation import EvaluationTrainer
from lit_dola.tasks.generate import LitDoLa

GROUPS: dict[str, type] = {"model": LitDoLa, "data": PromptDataModule, **CALLBACKS}
"""Groups of settings that are not Lightning's own."""
_CLASSES = ("accelerator", "strategy", "logger", "callbacks", "profiler", "plugins", "precision")


def config_schema() -> dict[str, Any]:
    """Return the schema of a configuration of ``predict`` or ``evaluate``."""
    set_parsing_settings(add_print_completion_argument=True)
    parser = ArgumentParser()
    parser.add_class_arguments(Trainer, "trainer", skip=set(_CLASSES))
    for group, owner in GROUPS.items():
        parser.add_class_arguments(owner, group, skip=set(LINKED) if group == "data" else None)
    hidden = DoLaCLI.subcommands()["evaluate"] | {"scorer"}
    parser.add_method_arguments(EvaluationTrainer, "evaluate", skip=hidden)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            parser.parse_args(["--print_completion", "jsonschema"])
    except SystemExit:
        schema: dict[str, Any] = json.loads(printed.getvalue())
    schema["properties"]["trainer"]["properties"] |= {name: {} for name in _CLASSES}
    schema["properties"]["scorer"] = {"description": "Class whose objects score an image."}
    schema.pop("required", None)
    return schema


if __name__ == "__main__":
    print(json.dumps(config_schema(), indent=1))
