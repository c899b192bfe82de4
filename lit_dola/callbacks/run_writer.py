"""What every task's writer does: start the folder, write from threads, keep each rank's log."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from logging import getLogger
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_dola import __version__
from lit_dola.callbacks.summary import first_line, last_line
from lit_dola.callbacks.write_queue import WriteQueue
from lit_dola.data.base import plan_of
from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure
from lit_dola.errors import RankError, UserError, given_path, printable
from lit_dola.runs.claim import Claim
from lit_dola.runs.files import append_line
from lit_dola.runs.finish import Outcome, finish_run
from lit_dola.runs.folder import delete_half_written
from lit_dola.runs.record_log import Record, RecordLog
from lit_dola.runs.records import Kind, RunRecord
from lit_dola.runs.resume import OnMismatch, RunStart, start_run
from lit_dola.runs.run_file import RunFile
from lit_dola.tasks.base import JanusModule

_log = getLogger(__name__)
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
        self.title = ""
        """Name of the run among several, for messages; empty if it is the only one."""
        self.outcome = Outcome()
        """What was skipped and what is missing; known to the first rank at the end."""
        self.skipped: dict[Path, int] = {}
        """Folders of all runs so far where something was skipped, and how much."""
        self._claim: Claim | None = None
        """The first rank's claim on the folder."""
        self._lock = Lock()

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

    def estimated_bytes(self, module: Any, plan: RunPlan) -> float | None:
        """Return roughly how much disk a result takes; None if it is not worth telling."""
        return None

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
        self.output_dir, missing, self._started, token, earlier = start
        self._plan.keep(missing)
        pl_module.take_batching(self._plan, trainer.precision, earlier)
        self._results, self._errors = (
            RecordLog(self.output_dir, name).of_rank(trainer.global_rank, token)
            for name in (self.kind.log, "errors")
        )
        self.run = RunFile(
            self.kind.log,
            token,
            len(self._plan.asked_for),
            self._plan.num_done,
            trainer.world_size,
            self.record_settings(),
        )
        if trainer.is_global_zero:
            pl_module.before_loading = [partial(self._begin, trainer, pl_module)]
        self._queue = WriteQueue()
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

    def _begin(self, trainer: Trainer, module: JanusModule) -> None:
        """Say what the run is about to do, and note it in its folder."""
        self._say(first_line(trainer, module, self._plan, self.kind.results, self.output_dir))
        self._describe()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what the model has decided since it was loaded."""
        assert isinstance(pl_module, JanusModule)
        self._settings |= pl_module.batching()
        self._describe(
            began=time.time(),
            batch_size=self._plan.batch_size,
            settings=self.record_settings(),
        )

    def _describe(self, **news: Any) -> None:
        """Note news about the run, which the first rank writes into its folder.

        Raises:
            UserError: If they cannot be written.
        """
        self.run = replace(self.run, **news)
        if self._claim is not None:
            try:
                self.run.write(self.output_dir)
            except OSError as error:
                raise RankError(self.cannot_write(error)) from error

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
            self.submit(self._append, self._errors, failure._asdict())
        self._wait()

    def submit(self, write: Callable[..., None], *args: Any) -> None:
        """Call a function on one of the writing threads."""
        self._queue.submit(write, *args)

    def relative(self, path: Path) -> str:
        """Return a path relative to the run's folder, with ``/``."""
        return printable(Path(os.path.relpath(path, self.output_dir)).as_posix())

    def append_record(self, record: RunRecord) -> None:
        """Append a record to this rank's log, which marks its files as complete."""
        self._append(self._results, record.to_line())

    def _append(self, path: Path, record: Record) -> None:
        with self._lock:
            append_line(path, record)

    def record_settings(self) -> dict[str, Any]:
        """Return the settings and versions for a record."""
        return {**self._settings, "versions": self._versions}

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until everything is written."""
        self._wait(max_left=0)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what was generated before the run ends."""
        if hasattr(self, "_queue"):
            self._queue.drain()
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge the logs of all ranks and write reports; runs on ranks without results too.

        Raises:
            UserError: If another rank has ended early, or something cannot be written.
        """
        self._queue.close()
        if self._ranks is not None:
            _wait_for(self._ranks)
        try:
            if self._claim is not None:
                self._finish(self._claim)
            self.write_reports(trainer)
        except OSError as error:
            raise RankError(self.cannot_write(error)) from error
        finally:
            self._release()

    def _finish(self, claim: Claim) -> None:
        plan = self._plan
        self.outcome = finish_run(self.kind, claim, self.files_of, plan.asked_for, plan.requests)
        num_there, num_missing, num_failures = self.outcome
        if num_failures:
            self.skipped[self.output_dir] = num_failures
        if plan.requests:
            delete_half_written(self.output_dir, before=self._started)
            self._describe(ended=time.time(), num_there=num_there, num_missing=num_missing)

    def conclude(self, trainer: Trainer) -> None:
        """Say what was made, if everything that was asked for is there; every rank must call it.

        Raises:
            UserError: If something is missing, for instance because a setting of the trainer ended
                the run early.
        """
        num_there, missing, num_failures = trainer.strategy.broadcast(self.outcome)
        if missing:
            raise UserError(
                f"{self.output_dir}: {missing} of {len(self._plan.asked_for)} {self.kind.results}"
                " are missing; expected all of them, but the trainer ended the run early"
                " (limit_predict_batches, fast_dev_run, max_time) or something deleted them; the"
                " same command without such a setting makes them"
            )
        if trainer.is_global_zero:
            run = self.run
            seconds = run.ended - run.began if run.began and run.ended else None
            made = num_there - run.done_before
            line = last_line(
                made, num_there, self.kind.results, seconds, num_failures, self.opens()
            )
            self._say(line)

    def _say(self, line: str) -> None:
        _log.info("%s%s", f"{self.title}: " if self.title else "", line)

    def opens(self) -> Path:
        """Return the path to look at when the run has ended."""
        return self.output_dir

    def _release(self) -> None:
        """Let other runs have the folder."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _wait(self, max_left: int | None = None) -> None:
        """Wait until only a few writes are left."""
        try:
            self._queue.wait(max_left)
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
