"""Tasks that need neither a model nor a trainer, and hence neither torch nor transformers.

Nothing that this file imports may import them: such a task starts in a fraction of a second.
"""

from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from lit_dola import __version__
from lit_dola.cli.parser import PARSER, OneLineParser
from lit_dola.cli.shipped import configs
from lit_dola.errors import printable
from lit_dola.reports.compare import compare
from lit_dola.reports.status import status_as_json, status_as_text
from lit_dola.runs.status import read_statuses

_log = getLogger(__name__)

ABOUT = "Make images with Janus and DoLa-static, and all that goes with it."
"""What the program does."""
TRAINER_TASKS = {
    "predict": "Make images of prompts.",
    "answer": "Answer questions about pictures.",
    "rank": "Rank labels for pictures, or the images of a run for their prompts.",
    "evaluate": "Run a task under several variants, and score or export the results.",
    "play": "Show a page to try DoLa on.",
    "serve": "Serve images to programs, as OpenAI's images endpoint does.",
}
"""What the tasks that need a model do, see :data:`lit_dola.cli.tasks.TASKS`."""


class PlainTask(NamedTuple):
    """A task that needs neither model nor trainer."""

    description: str
    function: Callable[..., Any]
    """Its arguments are those of the command line."""
    special: dict[str, dict[str, Any]]
    """Arguments that are not flags with a value, and their options for ``add_argument``."""
    run: Callable[[Namespace], None]


def status(runs: list[str], json: bool = False) -> None:
    """Print how far runs are, from what is in their folders.

    Args:
        runs: Folders of runs, or of evaluations.
        json: Print one JSON object per run.

    Raises:
        UserError: If a folder holds no run.
    """
    for place, found in enumerate(read_statuses(runs)):
        if json:
            print(status_as_json(found))
        else:
            print(("\n" if place else "") + printable(status_as_text(found)))


def _compare(settings: Namespace) -> None:
    for note in compare(settings.runs, settings.output, settings.seed, settings.copy_images):
        _log.warning(note)
    print(printable(str(Path(settings.output) / "index.html")))


def _runs(help: str) -> dict[str, dict[str, Any]]:
    return {"runs": {"nargs": "+", "type": str, "help": help}}


PLAIN_TASKS = {
    "compare": PlainTask(
        "Write a page that shows runs side by side; images also blind.",
        compare,
        _runs("Folders that predict or answer has written."),
        _compare,
    ),
    "status": PlainTask(
        "Print how far a run is, while it runs and after.",
        status,
        {
            **_runs("Folders of runs or evaluations."),
            "--json": {"action": "store_true", "help": "Print one JSON object per run."},
        },
        lambda settings: status(settings.runs, settings.json),
    ),
    "configs": PlainTask(
        "List the configurations that come with the package, or copy some.",
        configs,
        {"names": {"nargs": "*", "type": str, "help": "Those to copy; none: list all."}},
        lambda settings: configs(settings.names, settings.output),
    ),
}
"""The subcommands without a model."""


def add_plain_tasks(parser: OneLineParser, new: Callable[..., ArgumentParser]) -> None:
    """Add the plain tasks as subcommands.

    Args:
        parser: A parser that has subcommands already.
        new: Makes the parser of a subcommand, from a keyword argument ``description``.
    """
    for name, task in PLAIN_TASKS.items():
        own = new(description=task.description)
        for argument, options in task.special.items():
            own.add_argument(argument, **options)
        own.add_function_arguments(
            task.function, skip={argument.strip("-") for argument in task.special}
        )
        parser.subcommands_action.add_subcommand(name, own, help=task.description)


def run_plain_task(args: list[str]) -> None:
    """Run a plain task, or print the version or the help about all tasks."""
    parser = OneLineParser(description=ABOUT, **PARSER)
    parser.add_argument("-c", "--config", action="config", help=CONFIG_HELP)
    parser.add_argument("--version", action="version", version=f"lit-dola {__version__}")
    parser.add_subcommands(dest="subcommand")
    for name, description in TRAINER_TASKS.items():  # for the help, and for misspelt names
        own = OneLineParser(description=description, **PARSER)
        parser.subcommands_action.add_subcommand(name, own, help=description)
    add_plain_tasks(parser, _new_parser)
    config = parser.parse_args(args)
    PLAIN_TASKS[config["subcommand"]].run(config[config["subcommand"]])


CONFIG_HELP = "Path to a configuration file in json or yaml format."


def _new_parser(**about: Any) -> ArgumentParser:
    parser = OneLineParser(**about, **PARSER)
    parser.add_argument("-c", "--config", action="config", help=CONFIG_HELP)
    return parser
