"""The process with the model, which generates images of waiting requests in shared batches."""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from ctypes import Array, c_bool, c_char, c_int
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple, NoReturn

import torch
from litserve import LitAPI
from litserve.loops.base import LitLoop
from litserve.utils import LitAPIStatus, LoopResponseType
from PIL import Image

from lit_dola.apps.openai import ImageFile, ImageJob
from lit_dola.errors import UserError
from lit_dola.messages import log_to_stderr, one_line
from lit_dola.pipeline import JanusPipeline
from lit_dola.reports.generation import Generation
from lit_dola.runs.claim import is_alive
from lit_dola.runs.image_file import encode_image
from lit_dola.runs.records import ImageRecord
from lit_dola.tasks.generate import GeneratedImage
from lit_dola.tasks.preview import ImageStep

_log = logging.getLogger(__name__)
_MOST_REASON = 2000
"""Maximum bytes of a message."""
_PAUSE = 1.0
"""Seconds after which an idle worker checks whether the server has ended."""


@dataclass(frozen=True)
class Shared:
    """Memory shared by the processes of a server, besides their queues."""

    disconnected: "Array[Any]"
    """Flag per slot of the queue: its client disconnected."""
    pids: "Array[Any]"
    """Process of each worker, once its model is loaded."""
    drained: "Array[Any]"
    """One flag: every reply has been sent, and nothing is to come."""
    reason: "Array[Any]"
    """Error of a worker that could not load the model."""

    @classmethod
    def of(cls, requests: int, workers: int) -> "Shared":
        """Return it for a number of requests and of workers."""
        return cls(
            RawArray(c_bool, requests), RawArray(c_int, workers), RawArray(c_bool, 1),
            RawArray(c_char, _MOST_REASON + 1),
        )  # fmt: skip

    def has_dead_workers(self) -> bool:
        """Return whether a worker has died after its model was loaded."""
        return not all(map(is_alive, filter(None, self.pids)))


def _leave() -> NoReturn:
    """End the worker; a signal that arrives meanwhile changes nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit()


def parent_is_alive() -> bool:
    """Return whether the process that started this one is alive."""
    parent = parent_process()
    return parent is None or parent.is_alive()


class Payload(NamedTuple):
    """A request on its way to a worker."""

    job: ImageJob
    slot: int
    """Its slot in :attr:`Shared.disconnected`."""
    folder: Path
    """Folder for its images, if they are to be files."""


class Partial(NamedTuple):
    """An image that is not complete."""

    number: int
    """Its number among those of its request, from 0."""
    content: bytes
    """Its file."""


class Outcome(NamedTuple):
    """Result of a request."""

    images: list[ImageFile]
    at_once: int = 0
    """Images generated together, including those of other requests."""
    prompt_tokens: int = 0
    """Token ids of its prompt."""
    error: str | None = None
    """Reason for no images."""
    param: str | None = None
    """The field of the request that is to blame for that."""


_DISCONNECTED = Outcome([], error="client disconnected")


class ImagesAPI(LitAPI):  # type: ignore[misc]
    """Loads the model, and generates the images of requests.

    Args:
        load: Loads the model on a device.
        settings: Settings of the model that requests start from.
        shared: Memory shared by the processes.
        options: Arguments of LitServe's ``LitAPI``.
    """

    def __init__(
        self,
        load: Callable[[str], JanusPipeline],
        settings: dict[str, Any],
        shared: Shared,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.load = load
        self.settings = settings
        self.shared = shared

    def setup(self, device: str) -> None:
        """Load the model; called once, in the worker."""
        log_to_stderr()
        # Ctrl+C in a terminal, and systemd, signal every process at once. Replies come first.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end_if_drained)
        if device == "cpu" and len(self.shared.pids) > 1:  # workers share the cores
            torch.set_num_threads(max(torch.get_num_threads() // len(self.shared.pids), 1))
        try:
            self.pipeline = self.load(device)
        except UserError as error:
            reason = one_line(str(error)).encode(errors="replace")
            self.shared.reason.value = reason[:_MOST_REASON]
            logging.getLogger("litserve").setLevel(logging.CRITICAL)  # the server prints it
            raise
        self.shared.pids[int(os.environ["LITSERVE_WORKER_ID"])] = os.getpid()

    def health(self) -> bool:
        """Return whether the workers are alive; called in the server."""
        return not self.shared.has_dead_workers()

    def _end_if_drained(self, signum: int, frame: Any) -> None:
        if self.shared.drained[0]:
            _leave()

    def predict(
        self, payloads: Sequence[Payload], send: Callable[[Payload, Partial], None], **_: Any
    ) -> list[Outcome]:
        """Generate the images of requests that share their settings.

        Args:
            payloads: The requests.
            send: Receives images that are not complete, of requests that stream.
        """
        wanted = [payload for payload in payloads if not self._is_disconnected(payload)]
        try:
            made = iter(self._make(wanted, send) if wanted else [])
        except _AllDisconnected:
            made = iter(())
            wanted = []
        except UserError as error:
            if len(payloads) > 1:  # find out which request it is about
                return [self.predict([payload], send)[0] for payload in payloads]
            if "prompts" in error.places:
                return [Outcome([], error=f"prompt: {error.detail}", param="prompt")]
            if error.name in payloads[0].job.settings:
                return [Outcome([], error=one_line(str(error.in_python())), param=error.name)]
            _log.error("%s", one_line(str(error)))
            return [Outcome([], error=one_line(str(error)))]
        return [next(made) if payload in wanted else _DISCONNECTED for payload in payloads]

    def _make(
        self, payloads: list[Payload], send: Callable[[Payload, Partial], None]
    ) -> list[Outcome]:
        """Generate images, and stop between two steps if all clients disconnected."""
        sent = [0] * len(payloads)

        def on_step(step: ImageStep) -> None:
            if all(map(self._is_disconnected, payloads)):
                raise _AllDisconnected
            due = {
                place: call
                for place, call in enumerate(step.calls)
                if _is_due(step, payloads[call].job.partial_images, sent[call])
            }
            for call, image in zip(due.values(), step.preview([*due]) if due else ()):
                send(payloads[call], Partial(sent[call], _encode(image, payloads[call].job)))
                sent[call] += 1

        jobs = [payload.job for payload in payloads]
        made = self.pipeline.generate_each(
            [job.call for job in jobs],
            callback_on_step=on_step,
            progress=False,
            logprobs=any(job.logprobs for job in jobs),
            **{**self.settings, **jobs[0].settings},
        )
        at_once = sum(job.call.images for job in jobs)
        return [_outcome(*each, at_once) for each in zip(payloads, made)]

    def _is_disconnected(self, payload: Payload) -> bool:
        return bool(self.shared.disconnected[payload.slot])


class _AllDisconnected(Exception):
    """Every client of a batch disconnected."""


def _is_due(step: ImageStep, asked_for: int, sent: int) -> bool:
    """Return whether the next of some evenly spaced images is to be sent after a step."""
    return sent < asked_for and (sent + 1) * step.count <= step.index * (asked_for + 1)


def _encode(image: Image.Image, job: ImageJob) -> bytes:
    return encode_image(image, {"prompt": job.call.prompt}, job.file_format, job.quality)


def _outcome(payload: Payload, made: Generation, at_once: int) -> Outcome:
    prompt_tokens = len(made.made[0].request.input_ids)
    try:
        return Outcome(_files(payload, made), at_once, prompt_tokens)
    except UserError as error:  # nowhere to write to: no fault of the others
        _log.error("%s", one_line(str(error)))
        return Outcome([], error=str(error))


def _files(payload: Payload, made: Generation) -> list[ImageFile]:
    """Return the files of images, or write them if the client asked for urls."""
    job = payload.job
    how: Any = {"format": job.file_format, "quality": job.quality}
    logprobs = [*map(_logprobs, made.made)] if job.logprobs else [None] * len(made)
    if job.response_format == "b64_json":
        return [
            ImageFile(made.encode(place, **how), None, record.provenance(), logprobs[place])
            for place, record in enumerate(made.records)
        ]
    made.save(payload.folder, gallery=False, **how)
    return [
        ImageFile(None, (payload.folder / record.file_name).resolve(), record.provenance(), own)
        for record, own in zip(ImageRecord.read(payload.folder), logprobs)
    ]


def _logprobs(image: GeneratedImage) -> dict[str, list[Any]]:
    """Return tokens and log-probabilities in the form of OpenAI's completions."""
    arrays = image.arrays()
    names = {"tokens": "tokens", "token_logprobs": "logprob", "sampled_logprobs": "sampled_logprob"}
    return {name: arrays[own].tolist() for name, own in names.items()}


class SharedBatches(LitLoop):  # type: ignore[misc]
    """Takes waiting requests, groups them by settings, and generates each group in shared batches.

    Unlike LitServe's own batches, one bad request fails alone, and an idle worker sleeps.

    Args:
        max_images: Images per group, unless a single request has more.
        company: Seconds that a request waits for others to share its batch.
    """

    def __init__(self, max_images: int, company: float) -> None:
        super().__init__()
        self.max_images = max_images
        self.company = company

    def run(
        self,
        lit_api: ImagesAPI,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        """Serve the waiting requests; LitServe calls this in a loop."""
        try:
            waiting = self._collect(request_queue)
        except (EOFError, ConnectionError):  # the server has ended
            _leave()
        if not waiting and (lit_api.shared.drained[0] or not parent_is_alive()):
            _leave()
        for group in by_settings(waiting).values():
            payloads = [payload for _, _, _, payload in group]
            places = {payload.slot: (consumer, uid) for consumer, uid, _, payload in group}
            send = partial(self._send, transport, places)
            try:
                outcomes = lit_api.predict(payloads, send)
            except Exception:
                _log.exception("a batch failed")
                outcomes = [Outcome([], error="internal error, see the log") for _ in group]
            for (consumer, uid, _, _), outcome in zip(group, outcomes):
                self.put_response(
                    transport, consumer, uid, outcome, LitAPIStatus.OK, LoopResponseType.REGULAR
                )

    def _send(
        self, transport: Any, places: Mapping[int, Any], payload: Payload, found: Partial
    ) -> None:
        consumer, uid = places[payload.slot]
        self.put_response(
            transport, consumer, uid, found, LitAPIStatus.OK, LoopResponseType.REGULAR
        )

    def _collect(self, queue: Any) -> list[Any]:
        """Wait for a request, then a moment for others, up to the images of a batch."""
        found: list[Any] = []
        images, until = 0, time.monotonic() + _PAUSE
        while images < self.max_images and (rest := until - time.monotonic()) > 0:
            try:
                found.append(queue.get(timeout=rest))
            except Empty:
                break
            if len(found) == 1:
                until = time.monotonic() + self.company
            images += found[-1][-1].job.call.images
        return found


def by_settings(waiting: list[Any]) -> dict[str, list[Any]]:
    """Group requests by the settings that they change, in the order in which they came."""
    groups: dict[str, list[Any]] = {}
    for request in waiting:
        key = json.dumps(request[-1].job.settings, sort_keys=True)
        groups.setdefault(key, []).append(request)
    return groups


def load_pipeline(device: str, *, model_path: str, dtype: torch.dtype, **how: Any) -> JanusPipeline:
    """Load the model on a device, as LitServe names it."""
    return JanusPipeline.from_pretrained(model_path, device=device, dtype=dtype, **how)
