"""A run in progress, as one rank sees it: its folder, its logs, ``run.json``."""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from lit_dola.data.columns import Line
from lit_dola.data.pictures import InlinePicture, Picture
from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure
from lit_dola.errors import RankError
from lit_dola.messages import printable
from lit_dola.runs.claim import Claim
from lit_dola.runs.files import append_line, make_folder, write_atomically
from lit_dola.runs.finish import Outcome, finish_run
from lit_dola.runs.folder import delete_half_written
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import RunRecord
from lit_dola.runs.resume import FilesOf, RunStart
from lit_dola.runs.run_file import RunFile

_THREADS = 4
_MAX_WAITING = 256
"""Pending writes beyond which the next batch waits."""


class OpenRun:
    """A run in progress: writes from a few threads while the next batch is generated.

    Args:
        kind: Record type of its results.
        plan: Its plan.
        start: Its folder and what is missing there.
        claim: The claim on its folder; None on ranks other than the first.
        about: Content of ``run.json``.
        rank: This rank.
    """

    def __init__(
        self,
        kind: type[RunRecord],
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
            RecordLog(self.folder, each).of_rank(rank, start.token) for each in (kind, Failure)
        )
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="writer")
        self._waiting: deque[Future[None]] = deque()

    def note(self, **news: Any) -> None:
        """Update ``run.json``, which the first rank writes."""
        self.about = replace(self.about, **news)
        if self._claim is not None:
            try:
                self.about.write(self.folder)
            except OSError as error:
                raise cannot_write(self.folder, error) from error

    def submit(self, write: Callable[..., None], *args: Any) -> None:
        """Call a function on one of the threads."""
        self._waiting.append(self._threads.submit(write, *args))

    def append(self, record: RunRecord, pictures: Sequence[Picture] = ()) -> None:
        """Append a record to this rank's log, which marks its files as complete.

        Args:
            record: The record.
            pictures: Pictures that it is about; those without a file of their own get one.
        """
        for picture in pictures:
            if isinstance(picture, InlinePicture):
                self._save(picture)
        self._append(self._results, record.to_line())

    def _save(self, picture: InlinePicture) -> None:
        path = self.folder / picture.name
        if not path.is_file():
            make_folder(path.parent)
            write_atomically(path, [picture.content])

    def skip(self, failure: Failure) -> None:
        """Append a failure to this rank's log of errors."""
        self.submit(self._append, self._errors, failure.to_line())

    def _append(self, path: Path, record: Line) -> None:
        with self._lock:
            append_line(path, record)

    def relative(self, picture: Picture) -> str:
        """Return the path of a picture relative to the run's folder, with ``/``."""
        if isinstance(picture, InlinePicture):
            return picture.name
        assert isinstance(picture, Path)
        return printable(Path(os.path.relpath(picture, self.folder)).as_posix())

    def wait(self, max_left: int | None = None) -> None:
        """Wait until at most ``max_left`` writes are pending; by default a few."""
        waiting = self._waiting
        max_left = _MAX_WAITING if max_left is None else max_left
        try:
            while len(waiting) > max_left or (waiting and waiting[0].done()):
                waiting.popleft().result()
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def abandon(self) -> None:
        """Write what was generated so far, whatever happens, and release the folder."""
        while self._waiting:
            with suppress(Exception):  # the user hears of the exception that ended the run
                self.wait(0)
        self.release()

    def close(self) -> None:
        """End the threads, once all writes are done."""
        self._threads.shutdown()

    def finish(self, files_of: FilesOf) -> Outcome:
        """Merge the logs of all ranks on the first one; others return an empty outcome."""
        if self._claim is None:
            return Outcome()
        plan = self.plan
        outcome = finish_run(self.kind, self.folder, files_of, plan.asked_for, plan.requests)
        delete_half_written(self.folder, before=self._start.began)
        if plan.requests:
            there, missing = outcome.num_there, outcome.num_missing
            self.note(ended=time.time(), num_there=there, num_missing=missing)
        return outcome

    def release(self) -> None:
        """Release the folder for other runs."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None


def cannot_write(folder: Path, error: OSError) -> RankError:
    """Return the error for an error of the file system."""
    return RankError(
        f"cannot write to {error.filename or folder}: {error.strerror}; everything written so far"
        " is kept, and the same command continues from there",
        setting="writer.output_dir",
    )
