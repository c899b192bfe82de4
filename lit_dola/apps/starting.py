"""Starting an application: settings, model, port, signals."""

import logging
import os
import signal
import socket
from collections.abc import Container, Iterator
from contextlib import contextmanager
from errno import EACCES, EADDRINUSE
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_dola.data.prompts import PromptDataModule
from lit_dola.errors import UserError, writing_to
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.pipeline.loaded import PRECISIONS
from lit_dola.settings.checks import given_path
from lit_dola.tasks.generate import LitDoLa

_log = logging.getLogger(__name__)
_PROXIES = ("all_proxy", "http_proxy", "https_proxy")
TOKEN = "LIT_DOLA_API_KEY"
"""Variable of the environment with the token that clients of ``serve`` must send."""


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
    """Return the checkpoint of a model, whose settings fit it, and any request.

    Raises:
        UserError: If a setting does not, e.g. a negative prompt that is too long.
    """
    data = PromptDataModule(prompts="a request")
    data.attach(model)
    model.check(data.checkpoint)
    data.setup("predict")
    return data.checkpoint


def name_of(checkpoint: Checkpoint) -> str:
    """Return the name of a model for callers: the last part of its path, or of its name."""
    return os.path.basename(os.path.abspath(checkpoint.name))


def address_of(host: str, port: int) -> str:
    """Return the address of a server.

    Example:
        >>> address_of("::1", 8000)
        'http://[::1]:8000'
    """
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_output_dir(output_dir: str) -> Path:
    """Return the folder of a setting, which is created if needed."""
    folder = given_path("output_dir", output_dir)
    with writing_to(folder, "output_dir"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def warn_if_open(host: str, token: str = "") -> None:
    """Warn that other machines may use a server without a token.

    Args:
        host: Address to listen on.
        token: Token that clients must send; empty if there is none.
    """
    if host not in ("127.0.0.1", "::1", "localhost") and not token:
        _log.warning("host: %s: whoever reaches it may use it; %s sets a token", host, TOKEN)


def check_port(host: str, port: int) -> None:
    """Check that a port of an address can be listened at."""
    if not host.strip():
        raise UserError("empty", "an address, e.g. 127.0.0.1", setting="host")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) not in (EADDRINUSE, EACCES):
            this = "an address of this machine, e.g. 127.0.0.1"
            raise UserError(f"{host}: {reason}", this, setting="host") from error
        raise UserError(
            f"{port}: {reason}", f"a free one, e.g. --port {port + 1}", setting="port"
        ) from error


@contextmanager
def without_proxies() -> Iterator[None]:
    """Hide the proxies of the environment, of which some need packages that are not installed."""
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if name.lower() in _PROXIES}
    try:
        yield
    finally:
        os.environ.update(hidden)


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
