"""JSON Schema of a configuration, for editors: ``python -m lit_dola.schema > configs/schema.json``.

jsonargparse writes it from the signatures and docstrings. Of the trainer's settings those that are
classes of Lightning's or of other packages are left open: all that could stand there would make
megabytes, and what is installed decides it.
"""

import io
import json
from contextlib import redirect_stdout
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch import Trainer

from lit_dola.cli import CALLBACKS, LINKED, DoLaCLI
from lit_dola.data import PromptDataModule
from lit_dola.evaluation import EvaluationTrainer
from lit_dola.module import LitDoLa

GROUPS: dict[str, type] = {"model": LitDoLa, "data": PromptDataModule, **CALLBACKS}
"""The groups of settings that are not Lightning's own."""
_CLASSES = ("accelerator", "strategy", "logger", "callbacks", "profiler", "plugins", "precision")


def config_schema() -> dict[str, Any]:
    """The schema of a configuration of ``predict`` or ``evaluate``."""
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
        schema = json.loads(printed.getvalue())
    schema["properties"]["trainer"]["properties"] |= {name: {} for name in _CLASSES}
    schema["properties"]["scorer"] = {"description": "Class whose objects score an image."}
    schema.pop("required", None)
    return schema


if __name__ == "__main__":
    print(json.dumps(config_schema(), indent=1))
