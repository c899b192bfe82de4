"""A server with OpenAI's images endpoint: ``main.py serve``."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from lightning.pytorch import Trainer
from litserve import LitServer

from lit_dola.apps.endpoint import PATH, TOKEN, ImagesSpec, answer_errors_as_openai, authorize
from lit_dola.apps.limits import Limits
from lit_dola.apps.openai import Served
from lit_dola.apps.starting import (
    check_port,
    checked_checkpoint,
    how_to_load,
    shared_settings,
    signals_end_it,
    tell,
)
from lit_dola.apps.worker import ImagesAPI, Shared, SharedBatches, load_pipeline, parent_is_alive
from lit_dola.decoding.cache import IMAGES_ON_CPU, MOST_IMAGES
from lit_dola.errors import UserError
from lit_dola.tasks.generate import LitDoLa

_log = logging.getLogger(__name__)
_MOST_BYTES = 2**20
"""Of a request."""


class ImageServer(LitServer):  # type: ignore[misc]
    """LitServe's server, which says when it is ready, and lets its workers outlive the last reply.

    Args:
        api: What runs in the workers.
        served: The model, and what may be asked of it.
        address: Where it listens, for messages.
        devices: Devices, a worker on each, as LitServe takes them.
    """

    def __init__(self, api: ImagesAPI, served: Served, address: str, **devices: Any) -> None:
        self.served = served
        self.address = address
        self.shared = api.shared
        self.ends = False
        self.helpers: list[int] = []
        super().__init__(
            api,
            timeout=False,
            max_payload_size=_MOST_BYTES,
            disable_openapi_url=True,
            **devices,
        )
        answer_errors_as_openai(self.app)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Say that the server is ready; after the last reply, let the workers end."""
        watch = asyncio.create_task(_end_with_the_parent())
        async with super().lifespan(app):
            tell(f"{self.served.name}: ready; POST {self.address}{PATH}")
            yield
        watch.cancel()
        self.shared.drained[0] = True
        if not parent_is_alive():  # nobody else will end the process with the queues
            for pid in self.helpers:
                os.kill(pid, signal.SIGKILL)

    def _init_manager(self, *args: Any) -> Any:
        manager = super()._init_manager(*args)
        self.helpers = [child.pid for child in active_children() if child.pid]
        return manager

    def _perform_graceful_shutdown(self, *args: Any, **how: Any) -> None:
        if self.ends:  # the thread that watches the workers sees them end
            return
        self.ends = True
        logging.getLogger("litserve").setLevel(logging.CRITICAL)  # it names what we have ended
        super()._perform_graceful_shutdown(*args, **how)


async def _end_with_the_parent() -> None:
    """End the process that listens if the one that has started it was killed."""
    while parent_is_alive():
        await asyncio.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def serve(
    model: LitDoLa,
    trainer: Trainer,
    limits: Limits,
    *,
    host: str,
    port: int,
    max_wait: float,
    stop_timeout: int,
    output_dir: Path,
) -> None:
    """Serve until a signal arrives; every request that was accepted gets its reply.

    Args:
        model: The model, and the settings that a request does not name.
        trainer: Devices and precision.
        limits: How much a request may ask for.
        host: Address to listen at.
        port: Port to listen at.
        max_wait: Seconds that a request waits for others, to share a batch with them.
        stop_timeout: Seconds for the last replies, after a signal.
        output_dir: Where images go that are to be files.

    Raises:
        UserError: If the server cannot listen, the model cannot be loaded, or a worker dies.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # or LitServe adds one that prints
    load, devices = how_to_load(model, trainer), _devices(trainer)
    served = Served(checked_checkpoint(model), limits, shared_settings(model))
    check_port(host, port)
    warn_if_open(host)
    shared = Shared.of(limits.max_queue, trainer.num_devices)
    api = ImagesAPI(
        partial(load_pipeline, **load),
        dict(served.settings),
        shared,
        spec=ImagesSpec(served, shared, output_dir),
        loop=SharedBatches(_images_at_once(model, devices["accelerator"]), max_wait),
    )
    api.authorize = authorize
    server = ImageServer(api, served, f"http://{host}:{port}", **devices)
    server.uvicorn_graceful_timeout = stop_timeout
    tell(f"{served.name}: loading, {trainer.num_devices} x {devices['accelerator']}")
    try:
        with signals_end_it():
            server.run(
                host, port, num_api_servers=1, log_level="warning", generate_client_file=False
            )
    except (RuntimeError, EOFError, ConnectionError) as error:
        raise why_it_ended(shared) from error
    tell("stopped; every request has its reply")


def warn_if_open(host: str) -> None:
    """Say that other machines may use a server without a token."""
    if host != "127.0.0.1" and not os.environ.get(TOKEN):
        _log.warning("host: %s: whoever reaches it may use it; %s sets a token", host, TOKEN)


def why_it_ended(shared: Shared) -> UserError:
    """Return the error of a server whose worker has ended by itself."""
    if shared.reason.value:
        return UserError(shared.reason.value.decode(errors="ignore"))
    if any(shared.pids):
        return UserError("serve: a process with the model has died; start the server again")
    return UserError("serve: the model was not loaded; the reason stands above")


def _devices(trainer: Trainer) -> dict[str, Any]:
    """Return the devices of a trainer as LitServe takes them.

    Raises:
        UserError: If they are on several machines.
    """
    if trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes: {trainer.num_nodes}; expected 1: a server runs on one machine"
        )
    kind = trainer.strategy.root_device.type
    if kind == "cpu":
        return {"accelerator": "cpu", "devices": 1, "workers_per_device": trainer.num_devices}
    return {"accelerator": kind, "devices": [*trainer.device_ids], "workers_per_device": 1}


def _images_at_once(model: LitDoLa, accelerator: str) -> int:
    """Return how many images of different requests are made together."""
    if model.images_per_batch != "auto":
        return int(model.images_per_batch)
    return IMAGES_ON_CPU if accelerator == "cpu" else MOST_IMAGES
