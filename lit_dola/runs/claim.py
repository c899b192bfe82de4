"""The claim on a folder: one run at a time writes into it.

As long as a run lives, its first rank holds the lock of a file in the folder. The operating system
releases the lock when the process ends, however it ends, so a dead run claims nothing.
"""

import json
import os
import socket
import time
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from filelock import FileLock, Timeout

from lit_dola.errors import UserError
from lit_dola.runs.files import write_atomically

_LOCK = ".run.lock"
_HOLDER = ".run.json"
_PATIENCE = 1.0
"""Seconds to wait for the lock: :func:`holder_of` holds it for a moment."""


class Holder(NamedTuple):
    """The run that holds a folder."""

    host: str | None
    process: int | None
    since: str | None
    """Local time, e.g. ``2026-11-27 21:15:03``."""


class FolderInUse(UserError):
    """Another run is writing to the folder."""


class Claim:
    """A run's claim on its folder.

    Args:
        folder: Folder of the run; must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = token_hex(4)
        """Names the run's own files in the folder."""
        self._lock = _lock_of(folder)

    def take(self) -> None:
        """Claim the folder.

        Raises:
            FolderInUse: If a run is writing to it.
        """
        try:
            self._lock.acquire(timeout=_PATIENCE)
        except Timeout:
            host, process, since = _read_holder(self.folder)
            raise FolderInUse(
                f"process {process} on {host} has been writing to {self.folder} since {since}",
                "another folder, or that run to end first",
                setting="writer.output_dir",
            ) from None
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = Holder(socket.gethostname(), os.getpid(), now)
        content = json.dumps(holder._asdict()).encode()
        write_atomically(self.folder / _HOLDER, [content])

    def release(self) -> None:
        """Give the folder up; does nothing if it is not claimed."""
        if self._lock.is_locked:
            (self.folder / _HOLDER).unlink(missing_ok=True)
            self._lock.release()


def holder_of(folder: Path) -> Holder | None:
    """Return the run that is writing to a folder, changing nothing there; None if none is."""
    if not (folder / _LOCK).exists():
        return None
    try:
        with _lock_of(folder).acquire(timeout=0):
            return None
    except Timeout:
        return _read_holder(folder)
    except OSError:  # of another user, or on a read-only mount
        return _holder_as_far_as_known(folder)


def _holder_as_far_as_known(folder: Path) -> Holder | None:
    """Return the run that is writing to a folder where this process may not write."""
    try:
        import fcntl

        file = os.open(folder / _LOCK, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        finally:
            os.close(file)
    except BlockingIOError:
        return _read_holder(folder)
    except (OSError, ImportError):  # nor may it read the lock
        holder = _read_holder(folder)
        here = holder.host == socket.gethostname() and holder.process is not None
        return holder if holder.process and (not here or is_alive(holder.process)) else None


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _lock_of(folder: Path) -> FileLock:
    """Return a lock that every thread of the process shares, on a local or network file system."""
    return FileLock(folder / _LOCK, thread_local=False)


def _read_holder(folder: Path) -> Holder:
    try:
        about = json.loads((folder / _HOLDER).read_text())
        return Holder(*(about[name] for name in Holder._fields))
    except (OSError, ValueError, TypeError, KeyError):  # about to be written, or deleted by hand
        return Holder(None, None, None)
