"""Requests as clients send them: a job, or an error of the client's own; never a fault of ours."""

import asyncio
import json
import time
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

pytest.importorskip("litserve")

from lit_dola import JanusPipeline
from lit_dola.apps.endpoint import ImagesSpec, check_public_url
from lit_dola.apps.limits import Limits
from lit_dola.apps.openai import CALLERS_SETTINGS, ApiError, Served, job_of, request_model
from lit_dola.apps.starting import shared_settings
from lit_dola.apps.worker import ImagesAPI, Partial, Payload, Shared
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.messages import printable
from lit_dola.tasks.generate import LitDoLa

LIMITS = Limits(max_images=2, max_prompt_length=200, max_queue=8)
PROMPT = {"prompt": "a red circle", "n": 1, "seed": 0}


@pytest.fixture(scope="module")
def served(tiny_checkpoint):
    model = LitDoLa(model_path=str(tiny_checkpoint))
    return Served(Checkpoint.open(str(tiny_checkpoint)), LIMITS, shared_settings(model))


@pytest.mark.parametrize(("public_url", "kind"), [("", "b64_json"), ("https://a.example", "url")])
def test_a_reply_has_an_address_only_if_the_server_knows_its_own(public_url, kind, served):
    served = Served(served.checkpoint, LIMITS, {}, public_url)
    assert job_of({**PROMPT, "response_format": "url"}, served).response_format == kind
    assert job_of(PROMPT, served).response_format == "b64_json"


@pytest.mark.parametrize(
    "url",
    ["", "example.org", "//a", "ftp://a", "http://", "https://a?b=c", "http://[", "http://a b"],
)
def test_what_is_no_public_url(url):
    with pytest.raises(UserError, match=r"^public_url: .*; expected an address, e\.g\. https"):
        check_public_url(url)


@pytest.mark.parametrize("url", ["https://a.example/", "http://[::1]:80", "https://a/b/", None])
def test_a_public_url(url):
    assert check_public_url(url) == (url or "").rstrip("/")


ODD = [
    None, True, 0, -1, 2, 0.5, 1e-46, 1e300, 2**64, 10**400, float("nan"), "", "1", "null",
    "red " * 190, "x" * 300_000, "\ud83d", "\0", [], [[]] * 40_000, {"": [None]}, [1.0, 2.0, 3.0],
    [1e300, 1e-300, -1],
]  # fmt: skip
OTHERS = ["", "Prompt", "__class__", "model_path", "precision", "n ", "x" * 100_000, "\ud83d"]


def refusal(body, served):
    """Return the error of a request, without drawing anything; None if it is well."""
    try:
        job_of(body, served)
    except ApiError as error:
        return error.body["error"]


@pytest.mark.slow
def test_any_value_of_any_field(served, tiny_checkpoint):
    """What passes the first check is drawn, or refused with the field that is at fault."""
    api = ImagesAPI(lambda device: None, {}, Shared.of(8, 1))
    api.pipeline = JanusPipeline.from_pretrained(str(tiny_checkpoint))
    drawn = refused = 0
    for name in [*request_model(LIMITS, served.size).model_fields, *OTHERS]:
        for value in ODD:
            body = json.loads(json.dumps({**PROMPT, name: value}))
            found = refusal(body, served)
            if found is None:
                job = job_of(body, served)
                if not job.settings and name not in PROMPT:
                    continue  # the same images as without the field
                (outcome,) = api.predict([Payload(job, 0, tiny_checkpoint)], None)
                if outcome.error is None:
                    drawn += 1
                    assert len(outcome.images) == job.call.images
                    continue
                found = {"message": outcome.error, "param": outcome.param}
            refused += 1
            assert found["param"] in (printable(name)[:60], "prompt", None), (name, value)
            assert len(found["message"]) < 1500
            assert "\n" not in found["message"]
    assert drawn > 40 < refused


def test_an_error_after_the_first_image_of_a_stream_is_an_event(served, tmp_path):
    spec = ImagesSpec(served, Shared.of(8, 1), tmp_path)
    job = job_of({**PROMPT, "stream": True, "partial_images": 1}, served)

    async def events():
        found = asyncio.Queue()
        found.put_nowait(ApiError(503, "a process has died", code="worker_died"))
        return [it async for it in spec._events(job, Partial(0, b"x"), found, time.monotonic())]

    first, second = asyncio.run(events())
    assert first.startswith(b"event: image_generation.partial_image\ndata: {")
    name, data, *_ = second.decode().split("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))["error"]
    assert (error["code"], error["message"]) == ("worker_died", "a process has died")


@pytest.mark.parametrize("name", ["quality", "moderation", "style", "stream"])
def test_every_value_that_openais_client_knows(name, served):
    """But a transparent background, which no image of this model has."""
    params = pytest.importorskip("openai.types.image_generate_params")
    kinds = get_type_hints(params.ImageGenerateParamsBase)
    kinds["stream"] = Literal[True, False]
    literals = [it for it in (kinds[name], *get_args(kinds[name])) if get_origin(it) is Literal]
    values = [value for literal in literals for value in get_args(literal)]
    assert len(values) >= 2
    for value in values:
        assert refusal({**PROMPT, name: value}, served) is None
    assert refusal({**PROMPT, "background": "transparent"}, served)["param"] == "background"
    assert refusal({**PROMPT, "safety_identifier": "someone", "user": "x"}, served) is None


@pytest.mark.parametrize("body", [None, 3, "x", [], [PROMPT], True], ids=repr)
def test_a_body_that_is_no_object(body, served):
    with pytest.raises(ApiError, match="expected a JSON object"):
        job_of(body, served)


def test_no_caller_chooses_a_file_of_the_server():
    assert "lens" not in CALLERS_SETTINGS
    assert {"contrast", "beta", "alpha"} <= {*CALLERS_SETTINGS}
