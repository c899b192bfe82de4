"""The writer of any task: starts the folder, writes from threads, keeps each rank's log."""

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_dola.callbacks.summary import first_line, last_line, missing_line
from lit_dola.data.base import plan_of
from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure
from lit_dola.errors import RankError, UserError
from lit_dola.runs.claim import Claim
from lit_dola.runs.finish import Outcome
from lit_dola.runs.open_run import OpenRun, cannot_write
from lit_dola.runs.records import RunRecord, RunSettings
from lit_dola.runs.resume import OnMismatch, RunStart, start_run
from lit_dola.runs.run_file import RunFile
from lit_dola.settings.checks import given_path
from lit_dola.tasks.base import JanusModule

_log = getLogger(__name__)
_RANK_TIMEOUT = timedelta(days=365)
"""Timeout for the slowest rank; PyTorch would wait half an hour."""


class RunWriter(BasePredictionWriter):
    """Writes the results of a task into a folder, and resumes what an earlier run left there.

    A subclass names the record type of its results, the files that belong to a record
    (:meth:`files_of`), how to write a batch (:meth:`write_batch`), and the reports to write at the
    end (:meth:`write_reports`).

    Args:
        output_dir: As the setting ``writer.output_dir``.
        on_mismatch: As the setting ``writer.on_mismatch``.
    """

    kind: type[RunRecord]
    """Record type of its results."""
    run: OpenRun
    """The run in progress; set by ``setup``."""
    logprobs = False
    """Record the log-probability of each token."""

    def __init__(self, output_dir: str, on_mismatch: OnMismatch) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = given_path("writer.output_dir", output_dir)
        self.on_mismatch = on_mismatch
        self.title = ""
        """Name of the run among several, for messages; empty if it is the only one."""
        self.outcome = Outcome()
        """Counts at the end of the run; known to the first rank."""
        self.skipped: dict[Path, int] = {}
        """Number of skipped entries and results, by the folder of the run."""

    def settings(self) -> dict[str, Any]:
        """Return the writer's own settings that shape a result; by default none does."""
        return {}

    def check(self, module: JanusModule, plan: RunPlan) -> None:
        """Check the run before anything is written."""

    def files_of(self, record: Any) -> Sequence[str] | None:
        """Return the files that belong to a record; None if it must be generated again."""
        return ()

    def estimated_bytes(self, module: Any, plan: RunPlan) -> float | None:
        """Return roughly how much disk a result takes; None if it is negligible."""
        return None

    def write_batch(self, results: Any) -> Sequence[Failure]:
        """Submit the writes of one predict step; return the requests that failed."""
        raise NotImplementedError

    def write_reports(self, trainer: Trainer) -> None:
        """Write reports about the finished run, on every rank."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the folder before anything is generated, and drop requests that are done."""
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, JanusModule)
        pl_module.logprobs = self.logprobs
        self._plan = plan_of(trainer)
        model = pl_module.record_settings(self._plan, trainer.precision)
        self.run_settings = RunSettings(model, {})
        # Only the first rank looks: on a network file system another rank may see older content.
        found = self._start(pl_module) if trainer.is_global_zero else (None, None)
        start = trainer.strategy.broadcast(found[0])
        if isinstance(start, UserError):
            raise start
        assert start is not None
        plan = self._plan
        plan.keep(start.missing)
        self.output_dir = start.folder
        pl_module.take_batching(plan, trainer.precision, start.earlier)
        about = RunFile(
            self.kind.log,
            start.token,
            len(plan.asked_for),
            plan.num_done,
            trainer.world_size,
            self.record_settings(),
        )
        self.run = OpenRun(self.kind, plan, start, found[1], about, trainer.global_rank)
        if trainer.is_global_zero:
            pl_module.before_loading = [partial(self._begin, trainer, pl_module)]
        self._ranks = (
            torch.distributed.new_group(backend="gloo", timeout=_RANK_TIMEOUT)
            if trainer.world_size > 1
            else None
        )

    def _start(self, module: JanusModule) -> tuple[RunStart | UserError, Claim | None]:
        """Return an error rather than raise it, so that every rank learns of it."""
        try:
            self.check(module, self._plan)
            return start_run(
                self.kind,
                self._plan,
                self.output_dir,
                self.on_mismatch,
                {**self.run_settings.model, **self.settings()},
                self.files_of,
            )
        except UserError as error:
            return error, None
        except OSError as error:
            return cannot_write(self.output_dir, error), None

    def _begin(self, trainer: Trainer, module: JanusModule) -> None:
        """Print the first line, and write ``run.json``."""
        self._say(first_line(trainer, module, self._plan, self.kind.results, self.output_dir))
        self.run.note()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what the model has decided since it was loaded, and what it decides later."""
        assert isinstance(pl_module, JanusModule)
        pl_module.on_decision = [partial(self._note_decisions, pl_module)]
        self._note_decisions(pl_module, began=time.time(), batch_size=self._plan.per_step)

    def _note_decisions(self, module: JanusModule, **news: Any) -> None:
        self.run_settings = self.run_settings._replace(batching=module.batching())
        settings, step, about = self.record_settings(), module.step_name(), self.run.about
        if news or (settings, step) != (about.settings, about.step):
            self.run.note(settings=settings, step=step, **news)

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
        """Hand the results of a batch to the writing threads."""
        for failure in self.write_batch(prediction):
            if self._plan.on_error == "stop":
                raise RankError(failure.reason, at=self._plan.entry_file)
            self.run.skip(failure)
        self.run.wait()

    def record_settings(self) -> dict[str, Any]:
        """Return the settings and versions for a record."""
        return self.run_settings.with_file(**self.settings())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until everything is written."""
        self.run.wait(max_left=0)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what was generated before the run ends."""
        if hasattr(self, "run"):
            self.run.abandon()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge the logs of all ranks and write reports; runs on ranks without results too."""
        self.run.close()
        if self._ranks is not None:
            _wait_for(self._ranks)
        try:
            self.outcome = self.run.finish(self.files_of)
            if self.outcome.num_failures:
                self.skipped[self.output_dir] = self.outcome.num_failures
            self.write_reports(trainer)
        except OSError as error:
            raise cannot_write(self.output_dir, error) from error
        finally:
            self.run.release()

    def conclude(self, trainer: Trainer) -> None:
        """Print the last line if everything asked for exists; every rank must call it."""
        outcome = trainer.strategy.broadcast(self.outcome)
        if outcome.num_missing:
            raise UserError(missing_line(self.run.about, outcome), at=self.output_dir)
        if trainer.is_global_zero:
            self._say(last_line(self.run.about, outcome, self.opens()))

    def _say(self, line: str) -> None:
        _log.info("%s%s", f"{self.title}: " if self.title else "", line)

    def opens(self) -> Path:
        """Return the path to look at when the run has ended."""
        return self.output_dir


def predict(trainer: Trainer, model: LightningModule, datamodule: LightningDataModule) -> None:
    """Predict; results are written and not kept in memory.

    Raises:
        UserError: If something asked for is missing at the end.
    """
    trainer.predict(model, datamodule=datamodule, return_predictions=False)
    if writer := find_writer(trainer):
        writer.conclude(trainer)


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
