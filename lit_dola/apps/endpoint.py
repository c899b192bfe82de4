"""The endpoints of a server: queue, replies of workers, metrics for Prometheus."""

import asyncio
import json
import os
import re
import secrets
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from litserve.specs.base import LitSpec
from litserve.utils import ResponseBufferItem
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.cors import CORSMiddleware

from lit_dola.apps.openai import ApiError, Served, error_body, job_of, reply, unknown_model
from lit_dola.apps.starting import TOKEN, log
from lit_dola.apps.worker import Outcome, Payload, Shared
from lit_dola.errors import UserError

PATH = "/v1/images/generations"
_FILES = "/images"
"""Path of the files of images; their folders have names that nobody guesses."""
_FILE = re.compile(r"\d{8}-\d{6}-[0-9a-f]{32}/[^/]+/img_\d+\.(png|jpg|webp)")
_LOOK = 0.5
"""Seconds between two checks for disconnected clients and dead workers."""
_DIED = "a process with the model has died; the server ends"
_CLIENT_CLOSED = 499
"""nginx's status for a client that disconnected."""


class Metrics:
    """Metrics of a server for Prometheus."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "lit_dola_requests", "Requests by HTTP status", ["status"], registry=registry
        )
        self.images = Counter("lit_dola_images", "Images generated", registry=registry)
        self.waiting = Gauge(
            "lit_dola_requests_in_flight", "Requests that wait or run", registry=registry
        )
        self.seconds = Histogram(
            "lit_dola_request_seconds",
            "Time of requests that got images",
            buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600),
            registry=registry,
        )
        self.at_once = Histogram(
            "lit_dola_images_at_once",
            "Images generated together, including those of other requests",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )


class ImagesSpec(LitSpec):  # type: ignore[misc]
    """OpenAI's images endpoint.

    Args:
        served: The served model.
        shared: Memory shared by the processes.
        output_dir: Folder for images of requests with the ``response_format`` url.
    """

    def __init__(self, served: Served, shared: Shared, output_dir: Path) -> None:
        super().__init__()
        self.api_path = PATH
        self.served = served
        self.shared = shared
        self.output_dir = output_dir
        self.free = [*range(served.limits.max_queue)]
        """Free slots of the queue."""
        self.metrics: Metrics | None = Metrics()
        self.add_endpoint(PATH, self.create, ["POST"])
        self.add_endpoint("/v1/models", self.models, ["GET"])
        self.add_endpoint("/v1/models/{name:path}", self.model, ["GET"])
        self.add_endpoint("/metrics", self.show_metrics, ["GET"])
        self.add_endpoint(f"{_FILES}/{{name:path}}", self.file, ["GET"])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without locks, which cannot be sent to a worker."""
        return {**super().__getstate__(), "metrics": None, "_endpoints": []}

    @property
    def _model(self) -> dict[str, Any]:
        return {"id": self.served.name, "object": "model", "created": 0, "owned_by": "lit-dola"}

    async def models(self) -> Response:
        """List the model."""
        return JSONResponse({"object": "list", "data": [self._model]})

    async def model(self, name: str) -> Response:
        """Describe the model."""
        if name in self.served.names:
            return JSONResponse(self._model)
        error = unknown_model(name, self.served)
        return JSONResponse(error.body, error.status)

    async def file(self, name: str) -> Response:
        """Return the file of an image; its address is all that a client needs."""
        path = self.output_dir / name
        if not (_FILE.fullmatch(name) and path.is_file()):
            raise HTTPException(404, "no such image")
        return FileResponse(path)

    def _url_of(self, file: Path) -> str:
        place = file.relative_to(self.output_dir.resolve()).as_posix()
        return f"{self.served.public_url}{_FILES}/{quote(place)}"

    async def show_metrics(self) -> Response:
        """Return the metrics in the text format of Prometheus."""
        assert self.metrics is not None
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def create(self, request: Request) -> Response:
        """Generate the images of a request."""
        assert self.metrics is not None
        began = time.monotonic()
        try:
            status, body, told = await self._create(request)
        except ApiError as error:
            status, body, told = error.status, error.body, str(error)
        took = time.monotonic() - began
        self.metrics.requests.labels(status).inc()
        if status == 200:
            self.metrics.seconds.observe(took)
        log(f"{status} in {took:.1f} s: {told}")
        headers = {"Retry-After": "5"} if status == 429 else None
        return JSONResponse(body, status, headers)

    async def _create(self, request: Request) -> tuple[int, Any, str]:
        """Return the status, the body of the reply, and the line for the log."""
        job = job_of(await _body(request), self.served)
        if not self.free:
            most = self.served.limits.max_queue
            raise ApiError(429, f"queue full, {most} requests; try again later", code="queue_full")
        slot = self.free.pop()
        assert self.metrics is not None
        with self.metrics.waiting.track_inprogress():
            try:
                outcome = await self._outcome(job, slot, request)
            finally:
                self.shared.disconnected[slot] = False
                self.free.append(slot)
        told = f"{job.call.images} x {job.call.prompt!r:.60}, seed {job.call.seed}"
        if outcome is None:
            return _CLIENT_CLOSED, None, f"client disconnected: {told}"
        if outcome.error:
            if outcome.param:
                raise ApiError(400, outcome.error, outcome.param, "invalid_value")
            raise ApiError(500, outcome.error, code="server_error")
        self.metrics.images.inc(len(outcome.images))
        self.metrics.at_once.observe(outcome.at_once)
        return 200, reply(job, outcome.images, self.served.size, self._url_of), told

    async def _outcome(self, job: Any, slot: int, request: Request) -> Outcome | None:
        """Wait for a worker; return None if the client disconnected."""
        uid, item = uuid.uuid4().hex, ResponseBufferItem(asyncio.Event())
        self.response_buffer[uid] = item
        folder = self.output_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{uid}"
        payload = Payload(job, slot, folder)
        self.request_queue.put((self.response_queue_id, uid, time.monotonic(), payload))
        try:
            while True:
                try:
                    await asyncio.wait_for(item.event.wait(), _LOOK)
                    break
                except TimeoutError:
                    self.shared.disconnected[slot] = await request.is_disconnected()
                    if self.shared.has_dead_workers():
                        raise ApiError(503, _DIED, code="worker_died") from None
        finally:
            del self.response_buffer[uid]
        outcome, _ = item.response
        return None if self.shared.disconnected[slot] and not outcome.images else outcome


async def _body(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: not JSON: {error}; expected a JSON object") from error


def token() -> str:
    """Return the token that clients must send; empty if there is none.

    Raises:
        UserError: If no client could send it, as a header has printable ASCII alone.
    """
    found = os.environ.get(TOKEN, "").strip()
    if not all("!" <= character <= "~" for character in found):
        raise UserError("a token that no header can carry", "letters, digits, marks", setting=TOKEN)
    return found


def check_public_url(url: str | None) -> str:
    """Return the address by which clients reach a server, without its last ``/``; empty if unknown.

    Raises:
        UserError: If it is not an address.
    """
    if url is None:
        return ""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and not parts.query
    except ValueError:
        known = False
    if not known or not url.isprintable() or " " in url or "#" in url:
        raise UserError(
            f"{url!r:.60}", "an address, e.g. https://images.example.org", setting="public_url"
        )
    return url.rstrip("/")


def middlewares(cors_origin: str | None) -> list[Any]:
    """Return what handles requests before the endpoints.

    Args:
        cors_origin: Origin of web pages that may call the server; None: none.
    """
    cors = {"allow_origins": [cors_origin], "allow_methods": ["*"], "allow_headers": ["*"]}
    return [_HeadAsGet, *([(CORSMiddleware, cors)] if cors_origin else [])]


class _HeadAsGet:
    """ASGI middleware that answers HEAD as GET, without the body, which uvicorn leaves out."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


def authorize(request: Request) -> None:
    """Check the token of a request; the health check and files of images need none.

    Raises:
        HTTPException: If it is not the one in the environment.
    """
    expected = token()
    if not expected or request.url.path == "/health" or request.url.path.startswith(f"{_FILES}/"):
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secrets.compare_digest(
        given.strip().encode(), expected.encode()
    ):
        raise HTTPException(401, "Authorization: expected Bearer and the server's token")


def answer_errors_as_openai(app: FastAPI) -> None:
    """Return every error of a server as OpenAI's JSON."""

    async def as_json(request: Request, error: Exception) -> Response:
        status, said, headers = 500, "internal error, see the log", None
        if isinstance(error, AnyHTTPException):
            status, said, headers = error.status_code, str(error.detail), error.headers
            if status in (404, 405):
                said = f"{request.method} {request.url.path:.200}: {said}; expected POST {PATH}"
        code = {401: "invalid_api_key"}.get(status)
        return JSONResponse(error_body(status, said, code=code), status, headers)

    app.add_exception_handler(AnyHTTPException, as_json)
    app.add_exception_handler(Exception, as_json)
