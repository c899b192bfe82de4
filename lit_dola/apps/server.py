"""A server with OpenAI's images endpoint: ``main.py serve``."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing import active_children
from typing import Any, Literal

from fastapi import FastAPI
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from litserve import LitServer

from lit_dola.apps.endpoint import (
    PATH,
    ImagesSpec,
    answer_errors_as_openai,
    authorize,
    check_public_url,
    middlewares,
    token,
)
from lit_dola.apps.limits import Limits
from lit_dola.apps.openai import Served
from lit_dola.apps.starting import (
    address_of,
    check_port,
    checked_checkpoint,
    how_to_load,
    log,
    make_output_dir,
    shared_settings,
    stop_on_signals,
    warn_if_open,
)
from lit_dola.apps.worker import ImagesAPI, Shared, SharedBatches, load_pipeline, parent_is_alive
from lit_dola.decoding.cache import MOST_ROWS, ROWS_ON_CPU
from lit_dola.errors import UserError
from lit_dola.settings.checks import require
from lit_dola.settings.numbers import NonNegativeFinite, Port
from lit_dola.tasks.generate import LitDoLa

_log = logging.getLogger(__name__)
_MOST_BYTES = 2**20
"""Of a request."""


class ImageServer(LitServer):  # type: ignore[misc]
    """LitServe's server that logs when it is ready; its workers outlive the last reply."""

    def __init__(
        self, api: ImagesAPI, served: Served, address: str, cors_origin: str | None, **devices: Any
    ) -> None:
        self.served = served
        self.address = address
        self.shared = api.shared
        self.ends = False
        self.helpers: list[int] = []
        super().__init__(
            api, timeout=False, max_payload_size=_MOST_BYTES, disable_openapi_url=True,
            middlewares=middlewares(cors_origin), **devices,
        )  # fmt: skip
        answer_errors_as_openai(self.app)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Log that the server is ready; after the last reply, let the workers end."""
        watch = asyncio.create_task(_end_with_the_parent())
        async with super().lifespan(app):
            log(f"{self.served.name}: ready; POST {self.address}{PATH}")
            yield
        watch.cancel()
        self.shared.drained[0] = True
        if not parent_is_alive():  # nothing else would end the process with the queues
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
    trainer: Trainer,
    model: LitDoLa,
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = "127.0.0.1",
    port: Port = 8000,
    max_images: PositiveInt = 8,
    max_prompt_length: PositiveInt = 2000,
    max_queue: PositiveInt = 64,
    max_wait: NonNegativeFinite = 0.05,
    stop_timeout: PositiveInt = 300,
    output_dir: str = "outputs/served",
    cors_origin: str | None = None,
    public_url: str | None = None,
) -> None:
    """Serve images to programs: ``POST /v1/images/generations``, as OpenAI has it.

    Clients send the token in the environment variable ``LIT_DOLA_API_KEY``, if it is set. After a
    signal every request that was accepted gets its reply.

    Args:
        trainer: Devices and precision.
        model: The model, and the settings that a request does not name.
        host: Address to listen on: 127.0.0.1 is this machine alone, 0.0.0.0 and :: are all.
        port: Port to listen on.
        max_images: Maximum number of images per request.
        max_prompt_length: Maximum number of characters of a prompt.
        max_queue: Maximum number of requests that wait or run; further requests get 429.
        max_wait: Seconds that a request waits for others, to share a batch with them.
        stop_timeout: Seconds for the last replies, after SIGINT or SIGTERM.
        output_dir: Folder for images of requests with the ``response_format`` url.
        cors_origin: Origin of web pages that may call it from a browser, e.g.
            ``https://example.org``, or ``*``; null: none.
        public_url: Address by which clients reach the server, e.g. ``https://images.example.org``:
            replies with the ``response_format`` url begin with it; null: every reply has the
            images themselves.

    Raises:
        UserError: If it cannot listen, the model cannot be loaded, or a worker dies.
    """
    require("litserve", "serve", extra="serve")
    logging.getLogger().addHandler(logging.NullHandler())  # or LitServe adds one that prints
    load, devices = how_to_load(model, trainer), _devices(trainer)
    limits = Limits(max_images, max_prompt_length, max_queue)
    public_url = check_public_url(public_url)
    served = Served(checked_checkpoint(model), limits, shared_settings(model), public_url)
    check_port(host, port)
    warn_if_open(host, token())
    shared = Shared.of(limits.max_queue, trainer.num_devices)
    api = ImagesAPI(
        partial(load_pipeline, **load),
        dict(served.settings),
        shared,
        spec=ImagesSpec(served, shared, make_output_dir(output_dir)),
        loop=SharedBatches(_images_at_once(model, devices["accelerator"]), max_wait),
    )
    api.authorize = authorize
    server = ImageServer(api, served, address_of(host, port), cors_origin, **devices)
    server.uvicorn_graceful_timeout = stop_timeout
    log(f"{served.name}: loading, {trainer.num_devices} x {devices['accelerator']}")
    try:
        with stop_on_signals():
            server.run(
                host, port, num_api_servers=1, log_level="warning", generate_client_file=False
            )
    except (RuntimeError, EOFError, ConnectionError) as error:
        raise why_it_ended(shared) from error
    log("stopped; every request has its reply")


def why_it_ended(shared: Shared) -> UserError:
    """Return the error of a server whose worker has ended by itself."""
    if shared.reason.value:
        return UserError(shared.reason.value.decode(errors="ignore"))
    if any(shared.pids):
        return UserError(
            "a process with the model has died; start the server again", setting="serve"
        )
    return UserError("the model was not loaded; the reason is printed above", setting="serve")


def _devices(trainer: Trainer) -> dict[str, Any]:
    """Return the devices of a trainer as LitServe takes them."""
    if trainer.num_nodes > 1:
        raise UserError(
            str(trainer.num_nodes), "1: a server runs on one machine", setting="trainer.num_nodes"
        )
    kind = trainer.strategy.root_device.type
    if kind == "cpu":
        return {"accelerator": "cpu", "devices": 1, "workers_per_device": trainer.num_devices}
    return {"accelerator": kind, "devices": [*trainer.device_ids], "workers_per_device": 1}


def _images_at_once(model: LitDoLa, accelerator: str) -> int:
    """Return the number of images of different requests to generate together."""
    if model.images_per_batch != "auto":
        return int(model.images_per_batch)
    return (ROWS_ON_CPU if accelerator == "cpu" else MOST_ROWS) // 2  # requests have guidance
