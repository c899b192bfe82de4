"""Replies of OpenAI's images endpoint, and the result files of its batch interface.

A job of ``/v1/batches`` has a file of results, ``output.jsonl``, and one of failures,
``error.jsonl``: a line per request, found by its ``custom_id``.

Source: https://platform.openai.com/docs/guides/batch.
"""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from lit_dola.data.requests import ID, Failure
from lit_dola.errors import UserError
from lit_dola.runs.files import to_json, write_atomically
from lit_dola.runs.image_file import Format, read_image_bytes
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import ImageRecord

FORMATS: dict[str, Format] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""Suffixes of images' files, by OpenAI's names."""
RESULTS, FAILURES = "output.jsonl", "error.jsonl"


def b64_json(content: bytes) -> dict[str, str]:
    """Return an image as OpenAI's JSON."""
    return {"b64_json": b64encode(content).decode()}


def reply_of(
    data: Sequence[dict[str, Any]], created: float, output_format: str, size: str
) -> dict[str, Any]:
    """Return a reply of the images endpoint as JSON.

    Args:
        data: Its images.
        created: When, as a POSIX timestamp.
        output_format: Format of the images, one of :data:`FORMATS`.
        size: Their size, e.g. ``384x384``.
    """
    return {
        "created": int(created), "data": [*data], "output_format": output_format, "size": size,
    }  # fmt: skip


def write_batch(run: Path, folder: Path) -> Path:
    """Write the result files of a run whose prompts were requests of the batch interface.

    Args:
        run: Folder of a run that has ended.
        folder: Folder to write to; created if needed.

    Returns:
        The file of results.

    Raises:
        UserError: If an image is missing, or a prompt was no request.
        OSError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[int, Failure] = {}
    for failure in map(Failure.from_line, RecordLog(run, Failure).read()):
        failures.setdefault(failure.prompt_index, failure)
    write_atomically(folder / RESULTS, map(to_json, _results(run, failures)))
    if failures:
        errors = (_error(failures[index]) for index in sorted(failures))
        write_atomically(folder / FAILURES, map(to_json, errors))
    else:
        (folder / FAILURES).unlink(missing_ok=True)
    return folder / RESULTS


def _results(run: Path, failures: dict[int, Failure]) -> Iterator[dict[str, Any]]:
    records = ImageRecord.read(run)
    for index, images in groupby(records, key=lambda record: record.prompt_index):
        if index in failures:  # a request is answered as a whole
            continue
        found = [*images]
        name = found[0].metadata.get(ID)
        if not isinstance(name, str):
            raise UserError(
                f"prompt {index} has no {ID}",
                "data.prompt_json to be a file of requests, as OpenAI's batch interface takes it",
                setting="export openai-batch",
            )
        first = run / found[0].file_name
        contents = [read_image_bytes(run / record.file_name) for record in found]
        with Image.open(first) as image:
            size = "x".join(map(str, image.size))
        own = {suffix: name for name, suffix in FORMATS.items()}
        output_format = own[first.suffix.removeprefix(".")]  # type: ignore[index]
        body = reply_of(
            [b64_json(content) for content in contents], first.stat().st_mtime, output_format, size
        )
        reply = {"status_code": 200, "request_id": _id("req", name), "body": body}
        yield _line(name, reply, None)


def _error(failure: Failure) -> dict[str, Any]:
    error = {"code": "image_generation_failed", "message": failure.reason}
    return _line(failure.custom_id, None, error)


def _line(name: str | None, response: Any, error: Any) -> dict[str, Any]:
    return {
        "id": _id("batch_req", name or ""), ID: name, "response": response, "error": error,
    }  # fmt: skip


def _id(kind: str, name: str) -> str:
    """Return an id that is the same in every export."""
    return f"{kind}_{sha256(name.encode()).hexdigest()[:24]}"
