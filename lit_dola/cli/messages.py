"""Lines of the command line on stderr."""

import os
import sys
from collections.abc import Callable, Iterable

from lit_dola.messages import one_line


def is_first_local_rank() -> bool:
    """Return whether this process is the first one of its machine; a variable alone is no rank."""
    several = any(os.environ.get(name, "1") != "1" for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return rank == "0" or not several


def on_first_rank(log: Callable[[str], None], notes: Iterable[str]) -> None:
    """Log notes on the first rank of each machine."""
    if is_first_local_rank():
        for note in notes:
            log(note)


def fail(message: str, code: int) -> int:
    """Print an error in one line, and return the exit code."""
    print("error: " + one_line(message), file=sys.stderr)
    return code
