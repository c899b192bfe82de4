"""Claiming a folder: runs of different settings never write into one folder at the same time.

As long as a run lives, it holds the lock of a file of its own in the folder. The operating system
releases the lock when the process ends, however it ends, so a dead run claims nothing.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from filelock import FileLock, Timeout

from lit_dola.errors import UserError
from lit_dola.runs.files import write_atomically

_LOCK = ".run.lock"
"""Held only while a run claims the folder, or merges the records in it."""


def new_lock(path: Path) -> FileLock:
    """Return a lock that every thread of the process shares, on a local or network file system."""
    return FileLock(path, thread_local=False)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other run claims the folder or merges its records."""
    with new_lock(folder / _LOCK):
        yield


def living_runs(folder: Path) -> list[dict[str, Any]]:
    """Return ``host`` and ``process`` of the living runs in a folder, changing nothing there."""
    found = []
    for path in sorted(folder.glob(".run-*.lock")):
        try:
            with new_lock(path).acquire(timeout=0):
                continue
        except (Timeout, OSError):
            about = _about(path.with_suffix(".json")) or {}
            found.append({name: about.get(name) for name in ("host", "process")})
    return found


def _about(path: Path) -> dict[str, Any] | None:
    """Return what a run says about itself; None if somebody has changed or deleted the file."""
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


class Claim:
    """A run's claim on its folder.

    Args:
        folder: Folder of the run; must exist.
        content: What two runs must have in common to write into one folder: settings by name.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        self.folder = folder
        self.content = content
        self.token = token_hex(4)
        """Names the run's own files in the folder."""
        self._lock = new_lock(self._file(self.token, "lock"))

    def take(self) -> None:
        """Claim the folder.

        Raises:
            UserError: If a run with other content is writing to it.
        """
        with alone_in(self.folder):
            for token in self.others():
                self._compare(token)
            self._lock.acquire()
            about = {"host": socket.gethostname(), "process": os.getpid(), **self.content}
            write_atomically(self._file(self.token, "json"), [json.dumps(about).encode()])

    def release(self) -> None:
        """Give the folder up; does nothing if it is not claimed."""
        if self._lock.is_locked:
            self._delete(self.token)
            self._lock.release()

    def others(self) -> set[str]:
        """Return the tokens of other living runs in the folder, and delete what dead runs left."""
        living = set()
        for path in self.folder.glob(".run-*.lock"):
            token = path.stem.removeprefix(".run-")
            if token == self.token:
                continue
            lock = new_lock(path)
            try:
                with lock.acquire(timeout=0):
                    self._delete(token)
            except Timeout:
                living.add(token)
        return living

    def _compare(self, token: str) -> None:
        theirs = _about(self._file(token, "json"))
        if theirs is None:
            return
        changed = [
            f"{name} {json.dumps(theirs.get(name))}, here {json.dumps(value)}"
            for name, value in self.content.items()
            if theirs.get(name) != value
        ]
        if changed:
            raise UserError(
                f"writer.output_dir: process {theirs.get('process')} on {theirs.get('host')} is"
                f" writing to {self.folder} with {'; '.join(changed)}; expected the same settings"
                " and prompts, another folder, or that run to end first"
            )

    def _file(self, token: str, suffix: str) -> Path:
        return self.folder / f".run-{token}.{suffix}"

    def _delete(self, token: str) -> None:
        for suffix in ("json", "lock"):
            self._file(token, suffix).unlink(missing_ok=True)
