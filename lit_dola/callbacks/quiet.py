"""Lightning without the messages that mean nothing here."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
    try:
        with warnings.catch_warnings():
            for harmless in _HARMLESS:
                warnings.filterwarnings("ignore", harmless)
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
