"""Lightning without the messages that mean nothing here."""

import logging
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LAUNCHER = "lightning.fabric.strategies.launchers.subprocess_script"
"""Logger of the launcher, which watches the other ranks of a machine."""
_KILLED = re.compile(r"\[rank: (\d+)\] .* terminated with code -(\d+)")
_HARMLESS = (
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*Total length of .* across ranks is zero.*",  # everything is done, or fewer images than ranks
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's device summary and its harmless warnings."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    launcher = logging.getLogger(_LAUNCHER)
    launcher.setLevel(logging.INFO)
    launcher.addFilter(_say_which_rank_was_killed)
    try:
        with warnings.catch_warnings():
            for harmless in _HARMLESS:
                warnings.filterwarnings("ignore", harmless)
            yield
    finally:
        launcher.removeFilter(_say_which_rank_was_killed)
        launcher.setLevel(logging.NOTSET)
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _say_which_rank_was_killed(record: logging.LogRecord) -> bool:
    """Reword Lightning's message about a killed rank, and drop its others below a warning.

    A rank that ends by itself has printed its own error.
    """
    killed = _KILLED.search(record.getMessage())
    if killed is None:
        return record.levelno > logging.INFO
    name = signal.Signals(int(killed[2])).name
    record.msg = (
        f"rank {killed[1]} was ended by {name}, and the others with it; everything written so far"
        " is kept, and the same command continues from there"
    )
    record.args = ()
    return True
