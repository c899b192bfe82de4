"""The command line in its own process, forked from one that has already imported it."""

import multiprocessing
import os
import sys
from types import SimpleNamespace

from lightning.fabric.plugins.environments.lightning import find_free_network_port

from lit_dola.cli import main

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["lit_dola.cli.command"])


def start(folder, args, breaking=None, *details, **environment):
    """Start ``main.py`` with these arguments in a folder.

    Args:
        folder: Working folder; stdout and stderr go to ``.stdout`` and ``.stderr`` there.
        args: Arguments.
        breaking: Called in the process first, with the details, to break something.
        details: Arguments of ``breaking``.
        environment: Variables of the environment.
    """
    process = _context.Process(target=_main, args=(folder, args, environment, breaking, details))
    process.start()
    return process


def run(folder, *args, **environment):
    """Start, and wait for the end; returns the same as ``subprocess.run``."""
    return finish(start(folder, *args, **environment), folder)


def finish(process, folder):
    """Wait for a process that was started in a folder."""
    process.join(120)
    process.kill()
    process.join()
    stdout, stderr = (
        (folder / name).read_text("utf-8", "surrogateescape") for name in (".stdout", ".stderr")
    )
    return SimpleNamespace(returncode=process.exitcode, stdout=stdout, stderr=stderr)


def run_ranks(folder, count, args, nodes=1, breaking=None, details=()):
    """Run as many ranks as SLURM would, each in a folder of its own; returns what they printed."""
    per_node = count // nodes
    job = {
        "SLURM_NTASKS": str(count), "SLURM_NTASKS_PER_NODE": str(per_node),
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "dola", "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()),
    }  # fmt: skip
    ranks = []
    for rank in range(count):
        place = {"PROCID": rank, "LOCALID": rank % per_node, "NODEID": rank // per_node}
        variables = {**job, **{f"SLURM_{name}": str(value) for name, value in place.items()}}
        own = folder / f"rank{rank}"
        own.mkdir(exist_ok=True)
        ranks.append((start(own, args, breaking, *details, **variables), own))
    return [finish(*rank) for rank in ranks]


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
