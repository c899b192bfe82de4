"""Requests of OpenAI's batch interface, as entries of a prompt file.

A line is ``{"custom_id": …, "method": "POST", "url": "/v1/images/generations", "body": {…}}``. Of
its body, ``prompt``, ``n``, ``seed`` and ``negative_prompt`` shape the images, and the rest is kept
as metadata: it is about OpenAI's own models, or a setting of the whole run.

Source: https://platform.openai.com/docs/guides/batch.
"""

from collections.abc import Mapping
from typing import Any

from lit_dola.data.entry_file import kind_of
from lit_dola.data.requests import ID
from lit_dola.errors import UserError

URL = "/v1/images/generations"
_MOST = 1024
"""Images per request at most."""
_USED = {ID, "n", "seed", "negative_prompt"}
_UNNOTICED = {"model", "user", "moderation", "response_format", "stream", "partial_images"}
"""Fields of OpenAI's whose absence nobody notices in the images."""


def is_request(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry is a request of the batch interface."""
    return ID in entry and isinstance(entry.get("body"), dict)


def request_of(entry: Mapping[str, Any], before: set[str]) -> tuple[dict[str, Any], int]:
    """Return the fields of a request's body under its name, and how many images it asks for.

    Args:
        entry: The request, see :func:`is_request`.
        before: Names of earlier requests of the file, to which this one's is added.

    Raises:
        UserError: If it has no name of its own, or is no request of images.
    """
    name, url, body = entry[ID], entry.get("url", URL), entry["body"]
    if not isinstance(name, str) or not name:
        found = "empty" if name == "" else kind_of(name)
        raise UserError(f"{ID} is {found}", "a text, different in each request")
    if name in before:
        raise UserError(f"{ID} {name!r:.60} occurs twice", "a different one in each request")
    before.add(name)
    if url != URL:
        raise UserError(f"url is {url!r:.60}", URL)
    count = body.get("n")
    count = 1 if count is None else count
    if type(count) is not int or not 1 <= count <= _MOST:
        raise UserError(f"n is {count!r:.40}", f"an integer, 1 to {_MOST}")
    return {ID: name, **{key: body[key] for key in body if key != ID}}, count


def without_effect(metadata: Mapping[str, Any]) -> set[str]:
    """Return the fields of a request that would shape its images and do not.

    Args:
        metadata: As :func:`request_of` returns it, without the prompt.
    """
    chosen = {key for key, value in metadata.items() if value not in (None, "auto")}
    return chosen - _USED - _UNNOTICED
