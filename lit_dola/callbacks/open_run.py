"""A run that is being made, as one rank sees it: its folder, its logs, what is known of it."""

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from lit_dola.data.pictures import Picture
from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure
from lit_dola.errors import RankError, printable
from lit_dola.runs.claim import Claim
from lit_dola.runs.files import append_line
from lit_dola.runs.finish import Outcome, finish_run
from lit_dola.runs.folder import delete_half_written
from lit_dola.runs.record_log import Record, RecordLog
from lit_dola.runs.records import Kind, RunRecord
from lit_dola.runs.resume import FilesOf, RunStart
from lit_dola.runs.run_file import RunFile

_THREADS = 4
_MAX_WAITING = 256
"""Writes that may wait for the disk; beyond that the next batch waits for them."""


class OpenRun:
    """A run that is being made: writes from a few threads while the next batch is made.

    Args:
        kind: What kind of results it makes.
        plan: What it is to make.
        start: Where it writes.
        claim: The claim on its folder; the first rank's alone.
        about: The run as ``run.json`` is to describe it.
        rank: This rank.
    """

    def __init__(
        self,
        kind: Kind[Any],
        plan: RunPlan,
        start: RunStart,
        claim: Claim | None,
        about: RunFile,
        rank: int,
    ) -> None:
        self.kind = kind
        self.plan = plan
        self.folder = start.folder
        self.about = about
        self._start = start
        self._claim = claim
        self._results, self._errors = (
            RecordLog(self.folder, name).of_rank(rank, start.token) for name in (kind.log, "errors")
        )
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="writer")
        self._waiting: deque[Future[None]] = deque()

    def note(self, **news: Any) -> None:
        """Note news about the run, which the first rank writes into its folder.

        Raises:
            UserError: If they cannot be written.
        """
        self.about = replace(self.about, **news)
        if self._claim is not None:
            try:
                self.about.write(self.folder)
            except OSError as error:
                raise RankError(cannot_write(self.folder, error)) from error

    def submit(self, write: Callable[..., None], *args: Any) -> None:
        """Call a function on one of the threads."""
        self._waiting.append(self._threads.submit(write, *args))

    def append(self, record: RunRecord) -> None:
        """Append a record to this rank's log, which marks its files as complete."""
        self._append(self._results, record.to_line())

    def skip(self, failure: Failure) -> None:
        """Have a failure written to this rank's log of errors."""
        self.submit(self._append, self._errors, failure._asdict())

    def _append(self, path: Path, record: Record) -> None:
        with self._lock:
            append_line(path, record)

    def relative(self, picture: Picture) -> str:
        """Return the path of a picture relative to the run's folder, with ``/``."""
        assert isinstance(picture, Path)
        return printable(Path(os.path.relpath(picture, self.folder)).as_posix())

    def wait(self, max_left: int | None = None) -> None:
        """Wait until few writes are left; until none is with 0.

        Raises:
            UserError: If something cannot be written.
        """
        waiting = self._waiting
        max_left = _MAX_WAITING if max_left is None else max_left
        try:
            while len(waiting) > max_left or (waiting and waiting[0].done()):
                waiting.popleft().result()
        except OSError as error:
            raise RankError(cannot_write(self.folder, error)) from error

    def abandon(self) -> None:
        """Write what was made so far, whatever happens, and let other runs have the folder."""
        while self._waiting:
            with suppress(Exception):  # the user hears of the exception that ended the run
                self.wait(0)
        self.release()

    def close(self) -> None:
        """End the threads, once all writes are done."""
        self._threads.shutdown()

    def finish(self, files_of: FilesOf) -> Outcome:
        """Merge the logs of all ranks, if this is the first one; nothing is known to the others.

        Args:
            files_of: Files that belong to a record.

        Raises:
            OSError: If they cannot be written.
        """
        if self._claim is None:
            return Outcome()
        plan = self.plan
        outcome = finish_run(self.kind, self._claim, files_of, plan.asked_for, plan.requests)
        delete_half_written(self.folder, before=self._start.began)
        if plan.requests:
            there, missing = outcome.num_there, outcome.num_missing
            self.note(ended=time.time(), num_there=there, num_missing=missing)
        return outcome

    def release(self) -> None:
        """Let other runs have the folder."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None


def cannot_write(folder: Path, error: OSError) -> str:
    """Return the message for an error of the file system."""
    return (
        f"writer.output_dir: cannot write to {error.filename or folder}: {error.strerror};"
        " everything written so far is kept, and the same command continues from there"
    )
