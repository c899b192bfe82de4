"""``main``: what the process does before it is known whether a model is needed."""

import gc
import logging
import os
import signal
import sys

from jsonargparse import set_parsing_settings

from lit_dola.cli.messages import fail, is_first_local_rank, on_first_rank
from lit_dola.cli.parser import ENV_PREFIX
from lit_dola.cli.plain import PLAIN_TASKS, TRAINER_TASKS, run_plain_task
from lit_dola.cli.shipped import find_configs
from lit_dola.data.old_names import rename_environment
from lit_dola.errors import RankError, UserError, log_to_stderr

_log = logging.getLogger(__name__)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments; those of the process if None.

    Exits with 1, and one line on stderr, for an error that the user can fix; with 2 for an invalid
    setting; with 3 if some prompts or images were skipped; with 128 plus its number for a signal.
    """
    given = sys.argv[1:] if args is None else [*args]
    if os.getcwd() not in sys.path:  # a setting may name a class in a file there
        sys.path.insert(0, os.getcwd())
    log_to_stderr()
    set_parsing_settings(add_print_completion_argument=True)
    on_first_rank(_log.warning, rename_environment(os.environ, ENV_PREFIX))
    try:
        given = find_configs(given)
    except UserError as error:
        raise SystemExit(fail(str(error), code=2)) from None
    try:
        if _needs_no_model(given):
            run_plain_task(given)
        else:
            _run_trainer_task(given)
    except UserError as error:
        # Every rank of a machine hits the same error, unless it is local to one.
        silent = not is_first_local_rank() and not isinstance(error, RankError)
        raise SystemExit(1 if silent else fail(str(error), code=1)) from None
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def _needs_no_model(args: list[str]) -> bool:
    """Return whether the arguments ask for a plain task, the version or the help about all tasks.

    What is unusual, such as a configuration before the name of the task, is left to the other
    parser, which knows everything but starts more slowly.
    """
    if not args:
        return f"{ENV_PREFIX}_SUBCOMMAND" not in os.environ
    if args[0] in ("-h", "--help", "--version", *PLAIN_TASKS):
        return True
    return not args[0].startswith("-") and TRAINER_TASKS.keys().isdisjoint(args)


def _run_trainer_task(args: list[str]) -> None:
    gc.disable()  # importing torch, Lightning and transformers makes much and frees little
    from lit_dola.cli.command import run_trainer_task

    gc.freeze()
    gc.enable()
    run_trainer_task(args)
