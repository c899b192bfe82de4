"""Pausing Python's garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection(freeze: bool = False) -> Iterator[None]:
    """Pause the collector while many objects are created and few are freed.

    Args:
        freeze: Keep it from ever scanning what was created, e.g. the modules of an import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if was_enabled:
            gc.enable()
