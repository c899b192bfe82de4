"""``main``: starts a task, importing what it needs and no more."""

import os
import signal
import sys
from io import TextIOWrapper

from jsonargparse import set_parsing_settings

from lit_dola.cli.arguments import Arguments, read_arguments
from lit_dola.cli.messages import fail, is_first_local_rank
from lit_dola.cli.plain import run_plain_task
from lit_dola.collector import no_garbage_collection
from lit_dola.errors import RankError, UserError
from lit_dola.messages import log_to_stderr
from lit_dola.registry import TASKS, ModelTask


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments; those of the process if None.

    Exits with 1, and one line on stderr, for an error that the user can fix; with 2 for an invalid
    setting; with 3 if some entries or results were skipped; with 128 plus its number for a signal,
    also for SIGPIPE if nobody reads what it prints.
    """
    if sys.stdout is None:  # closed by the shell
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        try:
            _start(args)
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        raise SystemExit(_cannot_print(error)) from None


def _cannot_print(error: OSError) -> int:
    """Return the exit code after a failed write to stdout, which is not tried again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    return fail(f"stdout: {error.strerror}", code=1)


def _start(args: list[str] | None) -> None:
    if os.getcwd() not in sys.path:  # a setting may name a class in a file there
        sys.path.insert(0, os.getcwd())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not one that a test or a notebook has put there
            stream.reconfigure(errors="backslashreplace")  # what the terminal cannot show
    log_to_stderr()
    set_parsing_settings(add_print_completion_argument=True)
    try:
        arguments = read_arguments(sys.argv[1:] if args is None else args)
    except UserError as error:
        raise SystemExit(fail(str(error), code=2)) from None
    try:
        _run(arguments)
    except UserError as error:
        # Every rank of a machine hits the same error, unless it is local to one.
        silent = not is_first_local_rank() and not isinstance(error, RankError)
        raise SystemExit(1 if silent else fail(str(error), code=1)) from None
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def _run(arguments: Arguments) -> None:
    needs_model = isinstance(TASKS.get(arguments.task or ""), ModelTask)
    about_all = not arguments.task and "--print_completion" in arguments.others
    if not (needs_model or about_all):
        run_plain_task(arguments)
        return
    with no_garbage_collection(freeze=True):  # the imports create much and free little
        from lit_dola.cli import command

    (command.print_for_all_tasks if about_all else command.run_model_task)(arguments)
