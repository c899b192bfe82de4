"""OpenAI's images endpoint: what a request asks for, what a reply and an error look like.

See https://platform.openai.com/docs/api-reference/images/create; our settings are further fields.
"""

import base64
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from lit_dola.apps.limits import Limits
from lit_dola.apps.starting import OF_A_CALL
from lit_dola.errors import UserError, suggestion
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.pipeline import ImageCall
from lit_dola.pipeline.arguments import MOST_SEED
from lit_dola.pipeline.janus_pipeline import OF_LOADING
from lit_dola.runs.image_file import Format
from lit_dola.tasks.generate import LitDoLa

ResponseFormat = Literal["b64_json", "url"]
_FORMATS: dict[str, Format] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "quality": ("auto", "standard"),
    "style": (),
    "stream": (False,),
    "partial_images": (0,),
}
"""OpenAI's fields that choose nothing here, and the values that ask for nothing else."""
_OWN = {
    "prompt", "n", "seed", "response_format", "output_format", "output_compression", "size",
    "model", "user",
}  # fmt: skip
_FOR_ALL_CALLERS = {*OF_LOADING, "compile", "images_per_batch", "speculative"}
CALLERS_SETTINGS = tuple(
    name
    for name in signature(LitDoLa).parameters
    if name not in _FOR_ALL_CALLERS and name not in OF_A_CALL
)
"""Settings of the model that each request may choose, besides the number of images and the seed."""


class ApiError(Exception):
    """An error as a client of OpenAI expects it.

    Args:
        status: Status of HTTP.
        message: What was found and what was expected.
        param: The field that is wrong.
        code: A word that a program can look for.
    """

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


@dataclass(frozen=True)
class ImageJob:
    """What a request asks for."""

    call: ImageCall
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that it changes; jobs with the same ones share batches."""
    response_format: ResponseFormat = "b64_json"
    output_format: str = "png"
    quality: int = 95

    @property
    def file_format(self) -> Format:
        """Format of the images' files."""
        return _FORMATS[self.output_format]


@dataclass(frozen=True)
class Served:
    """The model that is served, as far as requests can be wrong about it."""

    checkpoint: Checkpoint
    limits: Limits
    settings: Mapping[str, Any]
    """Settings of the model that requests start from."""

    @property
    def name(self) -> str:
        """What clients call the model."""
        return Path(self.checkpoint.name).name

    @property
    def size(self) -> str:
        """Size of its images, as OpenAI writes it."""
        return f"{self.checkpoint.image_side}x{self.checkpoint.image_side}"


def job_of(body: Any, served: Served) -> ImageJob:
    """Check the body of a request.

    Args:
        body: What its JSON holds.
        served: What there is to ask for.

    Raises:
        ApiError: If something is wrong; it names the field.
    """
    if not isinstance(body, dict):
        raise ApiError(400, f"body: found {type(body).__name__}; expected a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    known = {*_OWN, *_ONLY_VALUES, *CALLERS_SETTINGS}
    for name in given:
        if name not in known:
            more = suggestion(name, known) or f"; expected some of {', '.join(sorted(known))}"
            raise ApiError(400, f"{name:.60}: not a field{more}", name, "unknown_parameter")
    _check_others(given, served)
    call = ImageCall(
        _checked("prompt", served.limits.check_prompt, given.get("prompt")),
        _checked("n", served.limits.check_images, given.get("n", 1)),
        _seed(given.get("seed")),
    )
    output_format = _one_of(given, "output_format", _FORMATS, "png")
    quality = given.get("output_compression", 95)
    if type(quality) is not int or not 0 <= quality <= 100:
        raise _invalid("output_compression", quality, "an integer, 0 to 100")
    return ImageJob(
        call,
        _settings(body, served),
        _one_of(given, "response_format", ("b64_json", "url"), "b64_json"),
        output_format,
        max(quality, 1),
    )


def _check_others(given: Mapping[str, Any], served: Served) -> None:
    """Check the fields that there is nothing to choose with."""
    if given.get("model", served.name) != served.name:
        raise ApiError(
            404, f"model: {given['model']!r:.60}; expected {served.name!r}", "model",
            "model_not_found",
        )  # fmt: skip
    _one_of(given, "size", ("auto", served.size), "auto")
    for name, values in _ONLY_VALUES.items():
        if name in given and given[name] not in values:
            allowed = " or ".join([*map(repr, values), "no such field"])
            raise _invalid(name, given[name], f"{allowed}: there is nothing to choose")


def _settings(body: Mapping[str, Any], served: Served) -> dict[str, Any]:
    """Return the settings of the model that a request changes, as they are checked."""
    changes = {name: body[name] for name in CALLERS_SETTINGS if name in body}
    if not changes:
        return {}
    try:
        model = LitDoLa.checked(
            {**served.settings, **changes, "model_path": served.checkpoint.name}
        )
        model.check(served.checkpoint)
    except UserError as error:
        message = str(error).removeprefix("model.")
        name = message.partition(":")[0]
        raise ApiError(400, message, name, "invalid_value") from error
    found = {name: model.hparams[name] for name in changes}
    return {name: value for name, value in found.items() if value != served.settings[name]}


def _seed(given: Any) -> int:
    """Return a seed; without one every request draws another image, as at OpenAI."""
    if given is None:
        return random.SystemRandom().randint(0, MOST_SEED)
    if type(given) is not int or not 0 <= given <= MOST_SEED:
        raise _invalid("seed", given, f"an integer, 0 <= seed <= {MOST_SEED}")
    return given


def _checked(name: str, check: Any, value: Any) -> Any:
    try:
        return check(name, value)
    except UserError as error:
        raise ApiError(400, str(error), name, "invalid_value") from error


def _one_of(given: Mapping[str, Any], name: str, values: Any, default: str) -> Any:
    value = given.get(name, default)
    if not isinstance(value, str) or value not in values:
        raise _invalid(name, value, " or ".join(map(repr, values)))
    return value


def _invalid(name: str, value: Any, wanted: str) -> ApiError:
    return ApiError(400, f"{name}: {value!r:.60}; expected {wanted}", name, "invalid_value")


@dataclass(frozen=True)
class MadeImage:
    """An image on its way from the process with the model."""

    content: bytes | None
    """The file; None: it lies on the disk."""
    file: Path | None
    record: dict[str, Any]
    """Its prompt and every setting that shaped it."""


def reply(job: ImageJob, images: list[MadeImage], size: str) -> dict[str, Any]:
    """Return a reply as JSON; each image has its record besides what OpenAI's have."""
    return {
        "created": int(time.time()),
        "data": [
            {
                **(
                    {"url": image.file.as_uri()}
                    if image.file
                    else {"b64_json": base64.b64encode(image.content or b"").decode()}
                ),
                "record": {k: v for k, v in image.record.items() if k != "file"},
            }
            for image in images
        ],
        "output_format": job.output_format,
        "size": size,
    }
