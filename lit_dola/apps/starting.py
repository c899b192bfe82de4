"""Starting an application: settings, model, port, signals."""

import logging
import os
import signal
import socket
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.pipeline.loaded import PRECISIONS
from lit_dola.tasks.generate import LitDoLa

_log = logging.getLogger(__name__)


def log(line: str) -> None:
    """Log a line, without the control characters that a caller may have put into it."""
    _log.info("%s", "".join(each if each.isprintable() else " " for each in line))


def how_to_load(model: LitDoLa, trainer: Trainer) -> dict[str, Any]:
    """Return the arguments of ``JanusPipeline.from_pretrained``, besides the device."""
    dtypes = {precision: dtype for dtype, precision in PRECISIONS.items()}
    dtype: torch.dtype | None = dtypes.get(trainer.precision)
    if dtype is None:
        raise UserError(
            trainer.precision,
            f"{', '.join(dtypes)}: the weights are loaded in the precision",
            setting="trainer.precision",
        )
    return {name: model.hparams[name] for name in model.loading} | {"dtype": dtype}


def shared_settings(model: LitDoLa, leave_out: Container[str] = ()) -> dict[str, Any]:
    """Return the settings of a model that calls of its pipeline start from."""
    own = {*model.loading, *model.of_call}
    return {
        name: value
        for name, value in model.hparams.items()
        if name not in own and name not in leave_out
    }


def checked_checkpoint(model: LitDoLa) -> Checkpoint:
    """Return the checkpoint of a model, whose settings fit it."""
    checkpoint = Checkpoint.open(model.model_path)
    model.check(checkpoint)
    return checkpoint


def check_port(host: str, port: int) -> None:
    """Check that a port can be listened at."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(
            f"{port}: {error.strerror or error}",
            f"a free one, e.g. --port {port + 1}",
            setting="port",
        ) from error


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl+C does, but not those that are forked from it.

    Raises:
        KeyboardInterrupt: When a signal arrives.
    """
    own = os.getpid()

    def end(signum: int, _frame: Any) -> None:
        if os.getpid() == own:
            raise KeyboardInterrupt

    before = {signum: signal.signal(signum, end) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
