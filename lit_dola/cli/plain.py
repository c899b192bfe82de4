"""Tasks that need neither a model nor a trainer, and hence neither torch nor transformers.

Nothing that this file imports may import them: such a task starts in a fraction of a second.
"""

from logging import getLogger
from pathlib import Path
from typing import Any

from lit_dola import __version__
from lit_dola.cli.arguments import Arguments
from lit_dola.cli.configs import list_or_copy_configs
from lit_dola.cli.parser import CONFIG_HELP, OneLineParser, parser_options
from lit_dola.messages import printable
from lit_dola.registry import TASKS, resolve
from lit_dola.reports.compare import compare as write_comparison
from lit_dola.reports.status import status_as_json, status_as_text
from lit_dola.runs.status import read_statuses

_log = getLogger(__name__)
ABOUT = "Generate images with Janus and DoLa-static, and all that goes with it."
_FORMS = (
    "webdataset or parquet; openai-batch; or the form of a benchmark's program: geneval, geneval2,"
    " dpg, t2i-compbench, wise, hpsv2, flat."
)
_SPECIAL: dict[str, dict[str, dict[str, Any]]] = {
    "compare": {
        "runs": {"nargs": "+", "type": str, "help": "Folders that predict or answer has written."}
    },
    "export": {
        "form": {"type": str, "help": _FORMS},
        "runs": {"nargs": "+", "type": str, "help": "Folders that predict has written."},
    },
    "status": {
        "runs": {"nargs": "+", "type": str, "help": "Folders of runs or evaluations."},
        "--json": {"action": "store_true", "help": "Print one JSON object per run."},
    },
    "configs": {"names": {"nargs": "*", "type": str, "help": "Those to copy; none: list all."}},
}
"""Arguments that are not flags with a value, by task."""


def compare(runs: list[str], output: str, seed: int = 0, copy_images: bool = False) -> None:
    """Write a page that shows runs side by side.

    Args:
        runs: Folders of runs, two or more.
        output: Folder of the page; created if needed.
        seed: Shuffles the order and sides of the blind comparison; can be changed on the page.
        copy_images: Copy the images next to the page, so that its folder can be moved or sent;
            otherwise the page refers to them where they are.
    """
    for note in write_comparison(runs, output, seed, copy_images):
        _log.warning(note)
    print(printable(str(Path(output) / "index.html")))


def status(runs: list[str], json: bool = False) -> None:
    """Print how far runs are, from what is in their folders.

    Args:
        runs: Folders of runs, or of evaluations.
        json: Print one JSON object per run.
    """
    for place, found in enumerate(read_statuses(runs)):
        if json:
            print(status_as_json(found))
        else:
            print(("\n" if place else "") + printable(status_as_text(found)))


def configs(names: list[str], output: str = ".") -> None:
    """List the configurations that come with the package, or copy some.

    Args:
        names: Those to copy; none: list all.
        output: Folder to copy them to.
    """
    list_or_copy_configs(names, output)


def plain_parser(name: str, **options: Any) -> OneLineParser:
    """Return the parser of a plain task."""
    parser = OneLineParser(description=TASKS[name].help, **options)
    parser.add_argument("-c", "--config", action="config", help=CONFIG_HELP)
    special = _SPECIAL.get(name, {})
    for argument, how in special.items():
        parser.add_argument(argument, **how)
    skip: set[str | int] = {argument.strip("-") for argument in special}
    parser.add_function_arguments(resolve(TASKS[name].function), skip=skip)
    return parser


def parser_of_all(parsers: dict[str, OneLineParser]) -> OneLineParser:
    """Return the parser that knows all tasks.

    Args:
        parsers: Parsers of tasks, by name; the others know no settings.
    """
    parser = OneLineParser(description=ABOUT, **parser_options())
    parser.other_names = TASKS
    parser.add_argument("-c", "--config", action="config", help=CONFIG_HELP)
    parser.add_argument("--version", action="version", version=f"lit-dola {__version__}")
    subcommands = parser.add_subcommands(dest="subcommand")
    for name, task in TASKS.items():
        own = parsers.get(name) or OneLineParser(description=task.help, **parser_options())
        subcommands.add_subcommand(name, own, help=task.help)
    return parser


def run_plain_task(arguments: Arguments) -> None:
    """Run a plain task, or print the version or the help about all tasks."""
    name = arguments.task
    known = {name: plain_parser(name, **parser_options())} if name in TASKS else {}
    given = [*arguments.settings, *arguments.printing]
    config = parser_of_all(known).parse_args([name, *given] if name else given)
    settings = config[config["subcommand"]].as_dict()
    settings.pop("config", None)
    resolve(TASKS[config["subcommand"]].function)(**settings)
