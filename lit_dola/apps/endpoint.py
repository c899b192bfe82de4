"""The endpoints of a server: queue, replies of workers, metrics for Prometheus."""

import asyncio
import json
import os
import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from litserve.specs.base import LitSpec
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

from lit_dola.apps.openai import (
    ApiError,
    ImageJob,
    Served,
    completed_event,
    error_body,
    error_event,
    job_of,
    partial_event,
    reply,
    unknown_model,
)
from lit_dola.apps.starting import TOKEN, log
from lit_dola.apps.worker import Outcome, Partial, Payload, Shared
from lit_dola.data.batch_file import URL
from lit_dola.errors import UserError

PATH = URL
_FILES = "/images"
"""Path of the files of images; their folders have names that nobody guesses."""
_FILE = re.compile(r"\d{8}-\d{6}-[0-9a-f]{32}/[^/]+/img_\d+\.(png|jpg|webp)")
_LOOK = 0.5
"""Seconds between two checks for disconnected clients and dead workers."""
_DIED = "a process with the model has died; the server ends"
_CLIENT_CLOSED = 499
"""nginx's status for a client that disconnected."""
_GONE = object()
"""A marker in place of the images of such a client."""


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
        self._tasks: set[asyncio.Task[None]] = set()
        """Requests that a worker has not answered yet."""
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
        began = time.monotonic()
        try:
            job = job_of(await _body(request), self.served)
            found = self._begin(job, request)
            first = await found.get()
            if isinstance(first, Partial) or (job.stream and _has_images(first)):
                events = self._events(job, first, found, began)
                return StreamingResponse(events, media_type="text/event-stream")
            made = self._finish(job, first, began)
            body = reply(job, made.images, self.served, made.prompt_tokens, self._url_of)
            status = 200
        except ApiError as error:
            body, status = error.body, error.status
            self._note(status, began, str(error))
        headers = {"Retry-After": "5"} if status == 429 else None
        return JSONResponse(body, status, headers)

    def _begin(self, job: ImageJob, request: Request) -> "asyncio.Queue[Any]":
        """Send a request to the workers; return the queue of what they reply."""
        if not self.free:
            most = self.served.limits.max_queue
            raise ApiError(429, f"queue full, {most} requests; try again later", code="queue_full")
        found: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.create_task(self._receive(job, self.free.pop(), request, found))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return found

    async def _receive(
        self, job: ImageJob, slot: int, request: Request, found: "asyncio.Queue[Any]"
    ) -> None:
        """Wait for a worker, whatever becomes of the client: its slot is in use until then."""
        assert self.metrics is not None
        uid, replies = uuid.uuid4().hex, _Replies()
        self.response_buffer[uid] = replies
        folder = self.output_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{uid}"
        payload = Payload(job, slot, folder)
        try:
            with self.metrics.waiting.track_inprogress():
                self.request_queue.put((self.response_queue_id, uid, time.monotonic(), payload))
                while True:
                    try:
                        await asyncio.wait_for(replies.event.wait(), _LOOK)
                    except TimeoutError:
                        self.shared.disconnected[slot] = await request.is_disconnected()
                        if self.shared.has_dead_workers():
                            found.put_nowait(ApiError(503, _DIED, code="worker_died"))
                            return
                    for reply in replies.take():
                        if isinstance(reply, Outcome):
                            gone = self.shared.disconnected[slot] and not reply.images
                            found.put_nowait(_GONE if gone else reply)
                            return
                        found.put_nowait(reply)
        except BaseException:
            found.put_nowait(ApiError(500, "internal error, see the log", code="server_error"))
            raise
        finally:
            del self.response_buffer[uid]
            self.shared.disconnected[slot] = False
            self.free.append(slot)

    async def _events(
        self, job: ImageJob, first: Any, found: "asyncio.Queue[Any]", began: float
    ) -> AsyncIterator[bytes]:
        """Yield the events of a request that streams."""
        received = first
        while isinstance(received, Partial):
            yield partial_event(job, self.served, *received)
            received = await found.get()
        try:
            made = self._finish(job, received, began)
            yield completed_event(job, self.served, made.images[0], made.prompt_tokens)
        except ApiError as error:
            self._note(error.status, began, str(error))
            yield error_event(error)

    def _finish(self, job: ImageJob, outcome: Any, began: float) -> Outcome:
        """Count a request that has been answered, and return its outcome.

        Raises:
            ApiError: If there are no images.
        """
        if isinstance(outcome, ApiError):
            raise outcome
        told = f"{job.call.images} x {job.call.prompt!r:.60}, seed {job.call.seed}"
        if outcome is _GONE:
            raise ApiError(_CLIENT_CLOSED, f"client disconnected: {told}")
        if outcome.error:
            if outcome.param:
                raise ApiError(400, outcome.error, outcome.param, "invalid_value")
            raise ApiError(500, outcome.error, code="server_error")
        assert self.metrics is not None
        self.metrics.images.inc(len(outcome.images))
        self.metrics.at_once.observe(outcome.at_once)
        self.metrics.seconds.observe(time.monotonic() - began)
        self._note(200, began, told)
        found: Outcome = outcome
        return found

    def _note(self, status: int, began: float, told: str) -> None:
        """Count a request that has ended, and log it."""
        assert self.metrics is not None
        self.metrics.requests.labels(status).inc()
        log(f"{status} in {time.monotonic() - began:.1f} s: {told}")


class _Replies:
    """The replies of a worker to a request; LitServe sets ``response`` and then the event."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.worker_id: int | None = None
        self._found: list[Any] = []

    @property
    def response(self) -> Any:
        """The last reply."""
        return self._found[-1] if self._found else None

    @response.setter
    def response(self, response: Any) -> None:
        self._found.append(response[0])

    def take(self) -> list[Any]:
        """Return the replies since the last time."""
        self.event.clear()
        found, self._found = self._found, []
        return found


def _has_images(reply: Any) -> bool:
    return isinstance(reply, Outcome) and bool(reply.images)


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
