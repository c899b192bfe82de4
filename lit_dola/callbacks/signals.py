"""Signals: drop the running batch, write what was generated, and end the run.

Nothing else is needed to continue later: the same command generates what is missing.

This is the only file that uses a private name of Lightning, ``_accelerator_connector``: a trainer
with a single device does not expose its cluster environment otherwise, and that environment says
whether SLURM may requeue the job. It is the reason for the upper bound on ``lightning``.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_dola.tasks.base import JanusModule

_stopping = Event()
"""Set by the first signal; later ones change nothing."""
_GRACE = 10.0
"""Seconds that the first rank waits for the others on its machine to finish writing."""


class Interrupted(BaseException):
    """A signal asked the run to end.

    Args:
        signum: The signal.
        exit_code: Exit code of the process; if None, 128 plus the signal, as in shells.
        requeue: Whether SLURM is to start the job again.
    """

    def __init__(self, signum: int, exit_code: int | None = None, requeue: bool = False) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum if exit_code is None else exit_code
        self.requeue = requeue


@contextmanager
def signals_end_the_process() -> Iterator[None]:
    """Raise :class:`Interrupted` wherever SIGINT or SIGTERM arrives; not for the run itself."""

    def handle(signum: int, _frame: Any) -> None:
        if not _stopping.is_set():
            _stopping.set()
            raise Interrupted(signum)

    _stopping.clear()
    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            # After an interruption, let the process end undisturbed.
            signal.signal(signum, signal.SIG_IGN if _stopping.is_set() else handler)


class StopOnSignal(Callback):
    """Ends the run between two decoding steps after a signal.

    Replaces Lightning's handlers, which let a prediction continue after SIGTERM and, on SLURM's
    requeue signal, save a checkpoint of weights that have not changed.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._requeue_signal: int | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._is_child = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out which process started this one, and which ones this process started."""
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue_signal = environment.requeue_signal
        # Lightning starts the other ranks of a machine itself, unless SLURM or torchrun does.
        self._children = getattr(trainer.strategy.launcher, "procs", [])
        self._is_child = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        self._parent = os.getppid()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, which it has set by now."""
        assert isinstance(pl_module, JanusModule)
        for signum in (signal.SIGINT, signal.SIGTERM, self._requeue_signal):
            if signum is not None:
                signal.signal(signum, self._note)
        pl_module.on_step.append(self._check)

    def on_predict_batch_start(self, *_: Any) -> None:
        """End the run here, too, and also if the rank that started this one is gone."""
        if self._is_child and os.getppid() != self._parent:
            self._signum = signal.SIGTERM
        self._check()

    def on_exception(self, *_: Any) -> None:
        """Stop the other ranks: none continues alone."""
        if self._signum is None:
            self._stop_children()
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE)

    def _note(self, signum: int, _frame: Any) -> None:
        """Handle a signal; raising here, in the middle of anything, could lose the exception."""
        if self._signum is None:
            self._signum = signum
            _stopping.set()
            self._stop_children()

    def _check(self, _tokens: int = 0) -> None:
        if self._signum is not None:
            # Lightning kills the first rank if another exits with an error, even while it writes.
            exit_code = 0 if self._is_child and self._signum == signal.SIGINT else None
            raise Interrupted(self._signum, exit_code, self._signum == self._requeue_signal)

    def _stop_children(self) -> None:
        for child in self._children:
            child.send_signal(signal.SIGINT)


def requeue_slurm_job() -> None:
    """Ask SLURM to start this job, or this task of an array of jobs, again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", job], check=True)


def leave_process_group() -> None:
    """Leave the other ranks in order, after everything is done.

    gloo's threads would outlive the interpreter, which then aborts now and then; Lightning leaves
    only NCCL's groups itself.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
