"""OpenAI's images endpoint: requests, replies and errors.

See https://platform.openai.com/docs/api-reference/images/create; our settings are further fields.
"""

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from lit_dola.apps.limits import Limits
from lit_dola.apps.starting import name_of
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.messages import printable, suggestion
from lit_dola.pipeline import ImageCall
from lit_dola.reports.openai_batch import FORMATS, b64_json, reply_of
from lit_dola.runs.image_file import Format
from lit_dola.settings.declared import settings_of
from lit_dola.settings.numbers import MAX_SEED
from lit_dola.tasks.generate import LitDoLa

_IGNORED: dict[str, tuple[Any, ...]] = {
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "quality": ("auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"),
    "style": ("vivid", "natural"),
}
"""Ignored fields and their accepted values."""
_MOST_PARTIAL = 3
"""Images before the final one, as OpenAI allows them."""
CALLERS_SETTINGS = tuple(
    name
    for name in settings_of(LitDoLa)
    if name not in {*LitDoLa.loading, *LitDoLa.rounding, *LitDoLa.of_call, *LitDoLa.files}
)
"""Settings of the model that each request may choose, besides the number of images and the seed."""


class ApiError(Exception):
    """An error as a client of OpenAI expects it."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, param, code)


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return an error as JSON."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@cache
def request_model(limits: Limits, size: str) -> type[BaseModel]:
    """Return the model of a request's fields; a description is what a field's error expects."""
    fields: dict[str, Any] = {
        "prompt": (
            Annotated[str, AfterValidator(partial(limits.check_prompt, "prompt"))],
            Field(None, validate_default=True, description="a string"),
        ),
        "n": (int, Field(1, ge=1, le=limits.max_images, description=limits.images)),
        "seed": (
            int,
            Field(None, ge=0, le=MAX_SEED, description=f"an integer, 0 <= seed <= {MAX_SEED}"),
        ),
        "response_format": _one_of("b64_json", "url"),
        "output_format": _one_of(*FORMATS),
        "logprobs": (bool, Field(False, description="true or false")),
        "stream": (bool, Field(False, description="true or false")),
        "partial_images": (
            int,
            Field(0, ge=0, le=_MOST_PARTIAL, description=f"an integer, 0 to {_MOST_PARTIAL}"),
        ),
        "output_compression": (int, Field(95, ge=0, le=100, description="an integer, 0 to 100")),
        "size": _one_of("auto", size),
        "model": (Any, None),
        "user": (Any, None),
        "safety_identifier": (Any, None),
    }
    for name, values in _IGNORED.items():
        allowed = " or ".join([*map(repr, values), "no such field"])
        kind = Literal[values] if values else None
        fields[name] = (kind, Field(None, description=f"{allowed}: there is nothing to choose"))
    settings: dict[str, Any] = dict.fromkeys(CALLERS_SETTINGS, (Any, None))
    config = ConfigDict(extra="forbid", strict=True)
    return create_model("ImageRequest", __config__=config, **fields, **settings)


def _one_of(*values: str) -> tuple[Any, Any]:
    """Return the type and the default, the first value, of a field."""
    return Literal[values], Field(values[0], description=" or ".join(map(repr, values)))


@dataclass(frozen=True)
class ImageJob:
    """A checked request."""

    call: ImageCall
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that it changes; jobs with the same ones share batches."""
    response_format: str = "b64_json"
    output_format: str = "png"
    quality: int = 95
    logprobs: bool = False
    """Measure the log-probability of each token."""
    stream: bool = False
    """Reply by events, with images that are not complete before the final one."""
    partial_images: int = 0
    """Number of those images."""

    @property
    def file_format(self) -> Format:
        """Format of the images' files."""
        return FORMATS[self.output_format]


@dataclass(frozen=True)
class Served:
    """The served model, as far as requests depend on it."""

    checkpoint: Checkpoint
    limits: Limits
    settings: Mapping[str, Any]
    """Settings of the model that requests start from."""
    public_url: str = ""
    """Address by which clients reach the server; empty: unknown, and no reply has an address."""

    @property
    def name(self) -> str:
        """Name of the model for clients."""
        return name_of(self.checkpoint)

    @property
    def names(self) -> set[str]:
        """Names of the model that requests may use: also the one that the server was given."""
        return {self.name, str(self.checkpoint.name)}

    @property
    def size(self) -> str:
        """Size of its images, as OpenAI writes it."""
        return f"{self.checkpoint.image_side}x{self.checkpoint.image_side}"


def job_of(body: Any, served: Served) -> ImageJob:
    """Check the body of a request.

    Raises:
        ApiError: If something is wrong; it names the field.
    """
    if not isinstance(body, dict):
        raise ApiError(400, f"body: found {type(body).__name__}; expected a JSON object")
    # A field that is null counts as missing; a setting that is null may be meant.
    given = {k: v for k, v in body.items() if v is not None or k in CALLERS_SETTINGS}
    model = request_model(served.limits, served.size)
    try:
        asked: Any = model.model_validate(given)
        settings = _settings(given, served)
    except ValidationError as error:
        raise _validation_error(error, model) from error
    except UserError as error:
        known = error.in_python()
        raise ApiError(400, str(known), known.name or "prompt", "invalid_value") from error
    if asked.model is not None and not (
        isinstance(asked.model, str) and asked.model in served.names
    ):
        raise unknown_model(asked.model, served)
    if asked.stream and asked.n > 1:
        raise ApiError(400, f"n: {asked.n}; expected 1 with stream", "n", "invalid_value")
    if asked.partial_images and not asked.stream:
        message = f"partial_images: {asked.partial_images}; expected 0 without stream"
        raise ApiError(400, message, "partial_images", "invalid_value")
    # Without a seed every request draws another image, as at OpenAI.
    seed = random.SystemRandom().randint(0, MAX_SEED) if asked.seed is None else asked.seed
    return ImageJob(
        ImageCall(asked.prompt, asked.n, seed),
        settings,
        asked.response_format if served.public_url and not asked.stream else "b64_json",
        asked.output_format,
        max(asked.output_compression, 1),
        asked.logprobs,
        asked.stream,
        asked.partial_images,
    )


def unknown_model(name: Any, served: Served) -> ApiError:
    """Return the error for a model that is not served."""
    return ApiError(
        404, f"model: {name!r:.60}; expected {served.name!r}", "model", "model_not_found"
    )


def _validation_error(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """Return the first error of a request."""
    first = error.errors()[0]
    name = printable(str(first["loc"][0] if first["loc"] else first["input"]))
    known = model.model_fields
    if name not in known:
        more = suggestion(name, known) or f"; expected some of {', '.join(sorted(known))}"
        return ApiError(400, f"{name:.60}: not a field{more}", name[:60], "unknown_parameter")
    message = f"{name}: {first['input']!r:.60}; expected {known[name].description}"
    return ApiError(400, message, name, "invalid_value")


def _settings(given: Mapping[str, Any], served: Served) -> dict[str, Any]:
    """Return the settings of the model that a request changes, as they are checked."""
    changes = {name: given[name] for name in CALLERS_SETTINGS if name in given}
    if not changes:
        return {}
    model = LitDoLa.checked({**served.settings, **changes, "model_path": served.checkpoint.name})
    model.check(served.checkpoint)
    found = {name: model.hparams[name] for name in changes}
    return {name: value for name, value in found.items() if value != served.settings[name]}


@dataclass(frozen=True)
class ImageFile:
    """An image on its way from the process with the model."""

    content: bytes | None
    """The file; None: it is on the disk."""
    file: Path | None
    record: dict[str, Any]
    """Its prompt and every setting that shaped it."""
    logprobs: dict[str, list[Any]] | None = None
    """Its tokens and their log-probabilities, if the request asks for them."""


def reply(
    job: ImageJob,
    images: list[ImageFile],
    served: Served,
    prompt_tokens: int,
    url_of: Callable[[Path], str],
) -> dict[str, Any]:
    """Return a reply as JSON; each image has its record besides OpenAI's fields.

    Args:
        job: The request.
        images: Its images.
        served: The served model.
        prompt_tokens: Token ids of the prompt.
        url_of: Returns the address of a file.
    """
    data = [
        {
            **({"url": url_of(image.file)} if image.file else b64_json(image.content or b"")),
            **_ours(image),
        }
        for image in images
    ]
    usage = _usage(len(images), served, prompt_tokens)
    return {**reply_of(data, time.time(), job.output_format, served.size), "usage": usage}


def partial_event(job: ImageJob, served: Served, index: int, content: bytes) -> bytes:
    """Return the server-sent event of an image that is not complete.

    Args:
        job: The request.
        served: The served model.
        index: Number of the image among those before the final one, from 0.
        content: The image's file.
    """
    return _event("partial_image", job, served, content, partial_image_index=index)


def completed_event(job: ImageJob, served: Served, image: ImageFile, prompt_tokens: int) -> bytes:
    """Return the server-sent event of the final image; arguments as of :func:`reply`."""
    usage = _usage(1, served, prompt_tokens)
    return _event("completed", job, served, image.content or b"", usage=usage, **_ours(image))


def error_event(error: ApiError) -> bytes:
    """Return the server-sent event of an error after the first image."""
    return _sent("error", {"type": "error", **error.body})


def _event(kind: str, job: ImageJob, served: Served, content: bytes, **more: Any) -> bytes:
    name = f"image_generation.{kind}"
    return _sent(
        name,
        {
            "type": name,
            **b64_json(content),
            "created_at": int(time.time()),
            "size": served.size,
            "quality": "auto",
            "background": "opaque",
            "output_format": job.output_format,
            **more,
        },
    )


def _sent(name: str, content: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n".encode()


def _ours(image: ImageFile) -> dict[str, Any]:
    """Return what an image has besides OpenAI's fields."""
    record = {name: value for name, value in image.record.items() if name != "file_name"}
    return {"record": record, **({"logprobs": image.logprobs} if image.logprobs else {})}


def _usage(images: int, served: Served, prompt_tokens: int) -> dict[str, Any]:
    """Return how many tokens a request took, in OpenAI's form."""
    drawn = images * served.checkpoint.num_image_tokens
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": prompt_tokens},
        "output_tokens": drawn,
        "total_tokens": prompt_tokens + drawn,
    }
