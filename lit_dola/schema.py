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

from lit_dola.cli import LINKED, DoLaCLI
from lit_dola.data import PromptDataModule
from lit_dola.evaluation import EvaluationTrainer
from lit_dola.image_logger import ImageLogger
from lit_dola.module import LitDoLa
from lit_dola.writer import ImageWriter

_CLASSES = ("accelerator", "strategy", "logger", "callbacks", "profiler", "plugins", "precision")


def config_schema() -> dict[str, Any]:
    """The schema of a configuration of ``predict`` or ``evaluate``."""
    set_parsing_settings(add_print_completion_argument=True)
    parser = ArgumentParser()
    parser.add_class_arguments(Trainer, "trainer", skip=set(_CLASSES))
    parser.add_class_arguments(LitDoLa, "model")
    parser.add_class_arguments(PromptDataModule, "data", skip=set(LINKED))
    parser.add_class_arguments(ImageWriter, "writer")
    parser.add_class_arguments(ImageLogger, "image_logger")
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
