"""What every task's writer does: start the folder, write from threads, keep each rank's log."""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_dola import __version__
from lit_dola.data.base import plan_of
from lit_dola.data.requests import Failure, ImageKey, RunPlan
from lit_dola.errors import RankError, UserError, given_path, printable
from lit_dola.runs.claim import Claim, alone_in
from lit_dola.runs.files import append_line
from lit_dola.runs.folder import delete_half_written, image_files
from lit_dola.runs.records import Kind, Record, RecordLog, RunRecord
from lit_dola.runs.resume import OnMismatch, RunStart, start_run
from lit_dola.tasks.base import JanusModule

_MAX_WAITING = 256
"""Writes that may wait for the disk; beyond that the next batch waits for them."""
_RANK_TIMEOUT = timedelta(days=365)
"""How long to wait for the slowest rank; PyTorch would wait half an hour."""


class RunWriter(BasePredictionWriter):
    """Writes the results of a task into a folder, and resumes what an earlier run left there.

    A subclass says what kind of results it writes, which files belong to a record
    (:meth:`files_of`), how to write a batch (:meth:`write_batch`), and which reports to write at
    the end (:meth:`write_reports`).

    Args:
        output_dir: As the setting ``writer.output_dir``.
        on_mismatch: As the setting ``writer.on_mismatch``.
    """

    kind: Kind[Any]
    """What kind of results it writes."""

    def __init__(self, output_dir: str, on_mismatch: OnMismatch) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = given_path("writer.output_dir", output_dir)
        self.on_mismatch = on_mismatch
        self.num_failures = 0
        """Prompts and results that were skipped; known to the first rank at the end."""
        self.num_missing = 0
        """Results that were asked for and are neither there nor skipped, likewise."""
        self.skipped: dict[Path, int] = {}
        """Folders of all runs so far with ``num_failures``, if there are any."""
        self._claim: Claim | None = None
        """The first rank's claim on the folder."""
        self._lock = Lock()
        self._writing: deque[Future[None]] = deque()

    def settings(self) -> dict[str, Any]:
        """Return the writer's own settings that shape a result; by default none does."""
        return {}

    def check(self, module: JanusModule, plan: RunPlan) -> None:
        """Check the run before anything is written.

        Raises:
            UserError: If it cannot be done.
        """

    def files_of(self, record: Any) -> Sequence[str] | None:
        """Return the files that belong to a record; None if it must be made again."""
        return ()

    def write_batch(self, results: Any) -> Sequence[Failure]:
        """Submit the writes of one predict step; return the requests that failed."""
        raise NotImplementedError

    def write_reports(self, trainer: Trainer) -> None:
        """Write what is made from the finished run, on every rank."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the folder before anything is generated, and drop requests that are done.

        Raises:
            UserError: If the folder cannot be written to, or holds results of another run.
        """
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, JanusModule)
        self._plan = plan_of(trainer)
        self._settings = {
            **pl_module.record_settings(self._plan, trainer.precision),
            **self.settings(),
        }
        versions = {name: version(name) for name in ("torch", "transformers", "lightning")}
        self._versions = {"lit_dola": __version__, **versions}
        # Only the first rank looks: on a network file system another rank may see older content.
        start = self._start(pl_module) if trainer.is_global_zero else None
        start = trainer.strategy.broadcast(start)
        if isinstance(start, UserError):
            raise start
        assert start is not None
        self.output_dir, missing, self._began, token, earlier = start
        self._plan.keep(missing)
        pl_module.take_batching(self._plan, trainer.precision, earlier)
        self._log, self._error_log = (
            RecordLog(self.output_dir, name).of_rank(trainer.global_rank, token)
            for name in (self.kind.log, "errors")
        )
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="writer")
        self._ranks = (
            torch.distributed.new_group(backend="gloo", timeout=_RANK_TIMEOUT)
            if trainer.world_size > 1
            else None
        )

    def _start(self, module: JanusModule) -> RunStart | UserError:
        """Return an error rather than raise it, so that every rank learns of it."""
        try:
            self.check(module, self._plan)
            start, self._claim = start_run(
                self.kind,
                self._plan,
                self.output_dir,
                self.on_mismatch,
                self._settings,
                self.files_of,
            )
            return start
        except UserError as error:
            return error
        except OSError as error:
            return UserError(self.cannot_write(error))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what the model has decided since it was loaded."""
        assert isinstance(pl_module, JanusModule)
        self._settings |= pl_module.batching()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hand the results of a batch to the writing threads.

        Raises:
            UserError: If a result, of this batch or an earlier one, cannot be written or made.
        """
        for failure in self.write_batch(prediction):
            if self._plan.on_error == "stop":
                raise RankError(f"{self._plan.prompt_file}: {failure.reason}")
            self.submit(self._append, self._error_log, failure._asdict())
        self._finish(max_left=_MAX_WAITING)

    def submit(self, write: Callable[..., None], *args: Any) -> None:
        """Call a function on one of the writing threads."""
        self._writing.append(self._threads.submit(write, *args))

    def relative(self, path: Path) -> str:
        """Return a path relative to the run's folder, with ``/``."""
        return printable(Path(os.path.relpath(path, self.output_dir)).as_posix())

    def append_record(self, record: RunRecord) -> None:
        """Append a record to this rank's log, which marks its files as complete."""
        self._append(self._log, record.to_line())

    def _append(self, path: Path, record: Record) -> None:
        with self._lock:
            append_line(path, record)

    def record_settings(self) -> dict[str, Any]:
        """Return the settings and versions for a record."""
        return {**self._settings, "versions": self._versions}

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until everything is written."""
        self._finish()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what was generated before the run ends."""
        while self._writing:
            with suppress(Exception):  # the user hears of the exception that ended the run
                self._finish()
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge the logs of all ranks and write reports; runs on ranks without results too.

        Raises:
            UserError: If another rank has ended early, or something cannot be written.
        """
        self._threads.shutdown()
        if self._ranks is not None:
            _wait_for(self._ranks)
        try:
            if self._claim is not None:
                self._merge(self._claim)
                delete_half_written(self.output_dir, before=self._began)
            self.write_reports(trainer)
        except OSError as error:
            raise RankError(self.cannot_write(error)) from error
        finally:
            self._release()

    def _merge(self, claim: Claim) -> None:
        """Merge the logs, and count what was skipped and what is missing."""
        made: set[ImageKey] = set()
        failed: set[tuple[int, int]] = set()
        files = image_files(self.output_dir)  # a folder may have been deleted meanwhile

        def note_made(line: Record) -> Record:
            record = self.kind.from_line(line)
            if files.issuperset(self.files_of(record) or ()):
                made.add(record.key)
            return line

        def note_failed(line: Record) -> Record:
            failed.add((line["prompt_index"], line["image_index"]))
            return line

        with alone_in(self.output_dir):
            living = claim.others()
            RecordLog(self.output_dir, self.kind.log).merge(note_made, living)
            self.num_failures = RecordLog(self.output_dir, "errors").merge(note_failed, living)
        if self.num_failures:
            self.skipped[self.output_dir] = self.num_failures
        self.num_missing = sum(
            request.key not in made and request.key not in failed
            for request in self._plan.asked_for
        )

    def check_complete(self, trainer: Trainer) -> None:
        """Check that everything that was asked for is there; every rank must call it.

        Raises:
            UserError: If something is missing, for instance because a setting of the trainer ended
                the run early.
        """
        missing = trainer.strategy.broadcast(self.num_missing)
        if missing:
            raise UserError(
                f"{self.output_dir}: {missing} of {len(self._plan.asked_for)} {self.kind.results}"
                " are missing; expected all of them, but the trainer ended the run early"
                " (limit_predict_batches, fast_dev_run, max_time) or something deleted them; the"
                " same command without such a setting makes them"
            )

    def _release(self) -> None:
        """Let other runs have the folder."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _finish(self, max_left: int = 0) -> None:
        """Wait until only a few writes are left."""
        try:
            while len(self._writing) > max_left or (self._writing and self._writing[0].done()):
                self._writing.popleft().result()
        except OSError as error:
            raise RankError(self.cannot_write(error)) from error

    def cannot_write(self, error: OSError) -> str:
        """Return the message for an error of the file system."""
        return (
            f"writer.output_dir: cannot write to {error.filename or self.output_dir}:"
            f" {error.strerror}; everything written so far is kept, and the same command continues"
            " from there"
        )


def find_writer(trainer: Trainer) -> RunWriter | None:
    """Return the writer of a run; on the command line there always is one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, RunWriter)), None)


def _wait_for(ranks: Any) -> None:
    """Wait for all ranks, in a way that a signal can interrupt."""
    try:
        barrier = torch.distributed.barrier(group=ranks, async_op=True)
        while not barrier.is_completed():
            time.sleep(0.1)
        barrier.wait()
    except RuntimeError as error:
        raise RankError(
            "another rank ended early; everything written so far is kept, and the same command"
            " continues from there"
        ) from error
