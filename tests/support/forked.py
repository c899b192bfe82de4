"""The command line in a process of its own, forked from one that has imported it already."""

import multiprocessing
import os
import sys
from types import SimpleNamespace

from lit_dola.cli import main

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["lit_dola.cli"])


def start(folder, args, breaking=None, *details, **environment):
    """Start ``main.py`` with these arguments in a folder.

    Args:
        folder: Where it runs; its stdout and stderr go to files of that name there.
        args: Arguments.
        breaking: Called in the process first, with the details: what is to be wrong there.
        details: Arguments of ``breaking``.
        environment: Variables of the environment.
    """
    process = _context.Process(target=_main, args=(folder, args, environment, breaking, details))
    process.start()
    return process


def run(folder, *args, **environment):
    """Start, and wait for the end; gives what ``subprocess.run`` gives."""
    return finish(start(folder, *args, **environment), folder)


def finish(process, folder):
    """Wait for the end of a process that was started in a folder."""
    process.join(120)
    process.kill()
    process.join()
    stdout, stderr = ((folder / name).read_text("utf-8") for name in (".stdout", ".stderr"))
    return SimpleNamespace(returncode=process.exitcode, stdout=stdout, stderr=stderr)


def _main(folder, args, environment, breaking, details):
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["main.py"]
    for descriptor, name in [(1, ".stdout"), (2, ".stderr")]:
        with open(name, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    if breaking:
        breaking(*details)
    main([*map(str, args)])
