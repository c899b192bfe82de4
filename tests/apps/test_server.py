"""The server, through OpenAI's own client."""

import base64
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
import torch
from PIL import Image

from lit_dola.pipeline import JanusPipeline
from tests.apps.serving import TOKEN, free_port, serving
from tests.support import forked
from tests.support.commands import CPU, files, succeed

PATH = "/v1/images/generations"
openai = pytest.importorskip("openai")
pytest.importorskip("litserve")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with serving(
        folder, "--max_images", "4", "--max_wait", "0.3", "--max_prompt_length", "8000",
        "--cors_origin", "https://page.example", "--public_url", "http://localhost:{port}/",
        token=f" {TOKEN}\r\n", fork=True,
    ) as running:  # fmt: skip
        running.folder = folder
        yield running


def contents(reply):
    return [base64.b64decode(image.b64_json) for image in reply.data]


def predict(folder, prompt, *settings):
    """Return what ``predict`` writes for a prompt."""
    command = ["predict", "--config", "demo", *CPU, f"--data.prompts={prompt}", *settings]
    succeed(forked.run(folder, [*command, "--writer.output_dir=alone"]))
    written = files(folder / "alone")
    return [written[name] for name in sorted(written) if name.endswith((".png", ".jpg", ".webp"))]


def test_images_are_those_of_predict(server, tmp_path):
    made = server.client().images.generate(
        prompt="a red circle above a blue square", n=3, extra_body={"seed": 5, "alpha": 0.2}
    )
    expected = predict(
        tmp_path, "a red circle above a blue square", "--model.seed=5", "--model.alpha=0.2",
        "--model.parallel_size=3",
    )  # fmt: skip
    assert contents(made) == expected
    record = made.data[0].model_extra["record"]
    assert (record["alpha"], record["seed"], record["prompt"]) == (
        0.2, 5, "a red circle above a blue square",
    )  # fmt: skip
    assert made.size == "48x48"
    assert Image.open(BytesIO(contents(made)[0])).size == (48, 48)


def streamed(server, **asked):
    """Events of a request that streams, and the images in them."""
    events = [*server.client().images.generate(stream=True, **asked)]
    images = [Image.open(BytesIO(base64.b64decode(event.b64_json))) for event in events]
    return events, images


@pytest.mark.parametrize(
    ("partial_images", "format"), [(3, "png"), (1, "jpeg"), (0, "webp"), (None, "png")]
)
def test_a_stream_of_partial_images(server, partial_images, format):
    """Next to other requests of the same batch, one that streams and one that does not."""
    asked = {"prompt": "a red circle", "output_format": format, "extra_body": {"seed": 5}}
    if partial_images is not None:
        asked["partial_images"] = partial_images
    with ThreadPoolExecutor(3) as clients:
        mine = clients.submit(streamed, server, **asked)
        other = clients.submit(
            streamed, server, prompt="a blue square", partial_images=2, extra_body={"seed": 6}
        )
        plain = clients.submit(
            server.client().images.generate, prompt="a green cross", n=2, extra_body={"seed": 7}
        )
        events, images = mine.result()
        count = partial_images or 0
        kinds = ["image_generation.partial_image"] * count + ["image_generation.completed"]
        assert [event.type for event in events] == kinds
        assert [event.partial_image_index for event in events[:-1]] == [*range(count)]
        assert {(event.output_format, event.size) for event in events} == {(format, "48x48")}
        grey = [sum(pixel == (128, 128, 128) for pixel in it.getdata()) for it in images]
        if format == "png":  # lossless; each image has more rows than the one before
            assert grey == sorted(grey, reverse=True)
            assert len({*grey}) == len(grey)
            assert all(it.info["prompt"] == "a red circle" for it in images)
        assert (events[-1].usage.output_tokens, events[-1].model_extra["record"]["seed"]) == (
            144,
            5,
        )
        alone = server.client().images.generate(**asked | {"partial_images": None})
        assert contents(alone) == [base64.b64decode(events[-1].b64_json)]
        assert alone.usage.input_tokens == events[-1].usage.input_tokens > 4
        assert [len(other.result()[0]), len(plain.result().data)] == [3, 2]


def test_errors_of_a_stream_are_those_of_the_endpoint(server):
    """Before the first image they are replies as without a stream."""
    with pytest.raises(openai.BadRequestError, match="tokens; expected at most"):
        streamed(server, prompt="a " * 3000)
    assert server.get("/health") == "ok"


def test_a_client_that_leaves_a_stream(server):
    """Its slot is free again, and the server goes on."""
    stream = server.client().images.generate(
        prompt="a red circle", stream=True, partial_images=3, extra_body={"seed": 5}
    )
    next(iter(stream))
    stream.close()
    wait_for(server, 0)
    assert len(streamed(server, prompt="a red circle", partial_images=1)[0]) == 2


@pytest.mark.parametrize("format", ["b64_json", "url"])
def test_log_probabilities(server, format):
    """Of a request that shares its batch with one that wants none."""

    def ask(**more):
        return server.client().images.generate(
            prompt="a red circle", n=2, response_format=format, extra_body={"seed": 5, **more}
        )

    with ThreadPoolExecutor(2) as clients:
        asked, other = (clients.submit(ask, **more) for more in ({"logprobs": True}, {}))
    logprobs = [image.model_extra["logprobs"] for image in asked.result().data]
    assert [[*it] for it in logprobs] == [["tokens", "token_logprobs", "sampled_logprobs"]] * 2
    assert all(len(values) == 144 for it in logprobs for values in it.values())
    pipeline = JanusPipeline.from_pretrained("checkpoints/shapes-janus", device="cpu")
    made = pipeline("a red circle", seed=5, parallel_size=2, logprobs=True, progress=False)
    assert [it["tokens"] for it in logprobs] == made.tokens.tolist()
    ours = torch.tensor([it["sampled_logprobs"] for it in logprobs])
    torch.testing.assert_close(ours, made.sampled_logprobs, rtol=1e-4, atol=1e-4)
    assert all("logprobs" not in image.model_extra for image in other.result().data)


@pytest.mark.parametrize(
    ("format", "file_format"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")]
)
def test_a_url_is_a_file_of_a_run(server, tmp_path, format, file_format):
    made = server.client().images.generate(
        prompt="a green triangle", n=2, response_format="url", output_format=format,
        output_compression=80, extra_body={"seed": 1, "dola": False},
    )  # fmt: skip
    addresses = [image.url for image in made.data]
    assert all(it.startswith(f"http://localhost:{server.port}/images/") for it in addresses)
    replies = [urllib.request.urlopen(address) for address in addresses]  # without the token
    assert {reply.headers["Content-Type"] for reply in replies} == {f"image/{format}"}
    assert [reply.read() for reply in replies] == predict(
        tmp_path, "a green triangle", "--model.seed=1", "--model.dola=false",
        "--model.parallel_size=2", f"--writer.format={file_format}", "--writer.quality=80",
    )  # fmt: skip
    path = Path(url2pathname(urlparse(addresses[0]).path)).relative_to("/images")
    run = server.folder / "outputs/served" / path.parts[0]
    assert len((run / "metadata.jsonl").read_text().splitlines()) == 2
    for other in ("metadata.jsonl", f"../{path.parts[0]}/metadata.jsonl", "..%2f..%2f.stderr"):
        for root in (run.name, f"{run.name}/{path.parts[1]}"):
            assert http_reply(server, "GET", f"/images/{root}/{other}").status in (401, 404)


def test_clients_at_once_share_batches_and_get_what_they_would_alone(server):
    asked = [
        {"prompt": f"a {colour} {shape}", "n": n, "extra_body": {"seed": seed, "alpha": alpha}}
        for seed, (colour, shape, n, alpha) in enumerate(
            [
                ("red", "circle", 1, 0.1), ("blue", "square", 2, 0.1), ("red", "circle", 1, 0.3),
                ("green", "triangle", 1, 0.1), ("yellow", "circle", 3, 0.3),
                ("red", "square", 1, 0), ("blue", "triangle", 1, 0.1), ("red", "circle", 2, 0.1),
            ]
        )
    ]  # fmt: skip

    def ask(settings):
        return contents(server.client().images.generate(**settings))

    with ThreadPoolExecutor(8) as clients:
        together = [*clients.map(ask, asked)]
    shared = _batches(server)
    alone = [*map(ask, asked)]
    assert together == alone
    assert shared["+Inf"] > shared["4.0"]  # more images at once than one request may ask for


def _batches(server):
    lines = server.get("/metrics").splitlines()
    found = [line for line in lines if line.startswith("lit_dola_images_at_once_bucket")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in found}


def test_without_a_seed_each_request_draws_another_image(server):
    one, other = (server.client().images.generate(prompt="a red circle") for _ in range(2))
    seeds = [made.data[0].model_extra["record"]["seed"] for made in (one, other)]
    assert seeds[0] != seeds[1]
    again = server.client().images.generate(prompt="a red circle", extra_body={"seed": seeds[0]})
    assert contents(again) == contents(one)


BAD = [
    ({"n": 0}, "n", "n: 0; expected an integer, 1 to 4"),
    ({"n": 5}, "n", "n: 5; expected an integer, 1 to 4"),
    ({"n": 1.0}, "n", "n: 1.0; expected an integer"),
    ({"n": True}, "n", "n: True; expected an integer"),
    ({"prompt": ""}, "prompt", "prompt is empty; expected"),
    ({"prompt": None}, "prompt", "prompt: None; expected a string"),
    ({"prompt": ["a"]}, "prompt", "prompt: ['a']; expected a string"),
    ({"prompt": "a" * 8001}, "prompt", "prompt: 8,001 characters; expected at most 8,000"),
    ({"prompt": "red circle " * 500}, "prompt", "prompt has "),
    ({"prompt": "\ud800"}, "prompt", "half a surrogate pair"),
    ({"seed": -1}, "seed", "seed: -1; expected an integer, 0 <= seed"),
    ({"seed": 2**32}, "seed", "expected an integer, 0 <= seed"),
    ({"alpha": 2}, "alpha", "alpha: 2; expected a number, 0 <= alpha <= 1"),
    ({"alpha": None}, "alpha", "alpha: null"),
    ({"alpha": float("nan")}, "alpha", "alpha: nan"),
    ({"negative_prompt": ""}, "negative_prompt", "negative_prompt is empty; expected a text"),
    ({"negative_prompt": " \n"}, "negative_prompt", "negative_prompt is empty"),
    ({"negative_prompt": "red circle " * 500}, "negative_prompt", "tokens; expected at most"),
    ({"negative_prompt": "\ud83d"}, "negative_prompt", "half a surrogate pair"),
    ({"negative_prompt": 3}, "negative_prompt", "negative_prompt: 3; expected a text, or None"),
    ({"negative_prompt": ["a"]}, "negative_prompt", "negative_prompt: ['a']; expected a text"),
    ({"cfg_weight": 1e300}, "cfg_weight", "cfg_weight: 1e+300; expected a number, 0 <= cfg"),
    ({"temperature": 1e400}, "temperature", "temperature: inf; expected a number"),
    ({"temperature": [0] * 99_999}, "temperature", "expected a number"),
    ({"x" * 900_000: 1}, "x" * 60, "not a field"),
    ({"prompt": ["a"] * 99_999}, "prompt", "expected a string"),
    ({"n": [1] * 99_999}, "n", "expected an integer"),
    ({"model_path": ["x"] * 99_999}, "model_path", "not a field"),
    ({"dola": "perhaps"}, "dola", "dola: 'perhaps'; expected True or False"),
    ({"layer": 99}, "layer", "layer: 99 is not a middle layer of"),
    ({"apc": {}}, "apc", "apc: {}"),
    ({"size": "1024x1024"}, "size", "size: '1024x1024'; expected 'auto' or '48x48'"),
    ({"response_format": "png"}, "response_format", "expected 'b64_json' or 'url'"),
    ({"output_format": []}, "output_format", "expected 'png' or 'jpeg' or 'webp'"),
    ({"output_compression": 101}, "output_compression", "an integer, 0 to 100"),
    ({"quality": "best"}, "quality", "quality: 'best'; expected 'auto'"),
    ({"stream": 1}, "stream", "stream: 1; expected true or false"),
    ({"stream": True, "n": 2}, "n", "n: 2; expected 1 with stream"),
    ({"partial_images": 2}, "partial_images", "partial_images: 2; expected 0 without stream"),
    ({"stream": True, "partial_images": 4}, "partial_images", "4; expected an integer, 0 to 3"),
    ({"stream": True, "alpha": 7}, "alpha", "alpha: 7"),
    ({"alhpa": 0.2}, "alhpa", "alhpa: not a field; did you mean alpha?"),
    ({"model_path": "/etc"}, "model_path", "model_path: not a field"),
    ({"parallel_size": 9}, "parallel_size", "parallel_size: not a field"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), BAD, ids=[str(bad[0])[:40] for bad in BAD])
def test_bad_input(server, fields, param, message):
    with pytest.raises(openai.BadRequestError) as caught:
        post(server, json.dumps({"prompt": "a red circle", **fields}))
    error = caught.value.body
    assert error["param"] == param
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    assert len(error["message"]) < 1500


def post(server, body, **options):
    """Send a body as it is."""
    return server.client(**options).post(
        "/images/generations",
        cast_to=object,
        content=body.encode(),
        options={"headers": {"Content-Type": "application/json"}},
    )


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "3", "null", '"a"', "[" * 100_000, "{" + '"a":{' * 50_000]
)
def test_a_body_that_is_no_object(server, body):
    with pytest.raises(openai.BadRequestError, match=r"body: .*expected a JSON object"):
        post(server, body)


def test_a_body_that_is_too_large(server):
    with pytest.raises(openai.APIStatusError) as caught:
        post(server, json.dumps({"prompt": "a" * 2_000_000}))
    assert caught.value.status_code == 413
    assert caught.value.body["type"] == "invalid_request_error"


def test_the_model_has_a_name(server):
    assert [model.id for model in server.client().models.list()] == ["shapes-janus"]
    made = server.client().images.generate(prompt="a red circle", model="shapes-janus", size="auto")
    assert len(made.data) == 1
    with pytest.raises(openai.NotFoundError, match="model: 'dall-e-3'; expected 'shapes-janus'"):
        server.client().images.generate(prompt="a red circle", model="dall-e-3")


def http_reply(server, method, path, **headers):
    asked = urllib.request.Request(server.address + path, method=method, headers=headers)
    try:
        return urllib.request.urlopen(asked, timeout=30)
    except urllib.error.HTTPError as error:
        return error


@pytest.mark.parametrize("name", ["shapes-janus", "checkpoints/shapes-janus"])
def test_the_model_by_its_name_and_by_its_path(server, name):
    assert server.client().models.retrieve(name).id == "shapes-janus"
    made = server.client().images.generate(prompt="a red circle", model=name, n=1)
    assert len(made.data) == 1
    with pytest.raises(openai.NotFoundError, match="model: 'dall-e-3'; expected 'shapes-janus'"):
        server.client().models.retrieve("dall-e-3")


@pytest.mark.parametrize(
    "fields",
    [
        {"style": "vivid"},
        {"style": "natural"},
        *({"quality": it} for it in ("hd", "medium", "low")),
    ],
)
def test_fields_without_a_meaning_here_are_ignored(server, fields):
    assert len(server.client().images.generate(prompt="a red circle", **fields).data) == 1


def test_other_methods(server):
    head = http_reply(server, "HEAD", "/health")
    assert (head.status, head.read()) == (200, b"")
    for path, allowed in ((PATH, "POST"), ("/v1/models", "GET")):
        reply = http_reply(server, "DELETE", path, Authorization=f"Bearer {TOKEN}")
        assert reply.status == 405
        assert reply.headers["Allow"] == allowed
        assert json.loads(reply.read())["error"]["message"].startswith(f"DELETE {path}: ")


def test_a_page_of_the_named_origin_may_call_it(server):
    for origin, allowed in (("https://page.example", "https://page.example"),
                            ("https://other.example", None)):  # fmt: skip
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        reply = http_reply(server, "OPTIONS", PATH, **asked)
        assert reply.headers["Access-Control-Allow-Origin"] == allowed


def check_refused(done, message):
    assert done.returncode == 1
    *_, said = done.stderr.splitlines()  # after the settings that the checkpoint recommends
    assert said.startswith(f"error: {message}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("token", ["schlüssel", "two words", "a\tb", b"\xff\xfe", "猫"])
def test_a_token_that_nobody_can_send_is_refused_at_the_start(token, tmp_path):
    variables = {"LIT_DOLA_API_KEY": os.fsdecode(token)}
    done = forked.run(tmp_path, ["serve", "--config=demo", *CPU[:1]], **variables)
    check_refused(done, "LIT_DOLA_API_KEY: a token that no header can carry; expected letters")


REFUSED = [
    (["--model.negative_prompt="], "model.negative_prompt: negative_prompt is empty"),
    (["--model.negative_prompt", "red " * 2000], "model.negative_prompt: negative_prompt has "),
    (["--output_dir=file/x"], "output_dir: cannot write to file/x: Not a directory"),
]


@pytest.mark.parametrize("task", ["serve", "play"])
@pytest.mark.parametrize(("args", "message"), REFUSED)
def test_what_would_fail_every_request_is_refused_at_the_start(task, args, message, tmp_path):
    (tmp_path / "file").write_text("")
    port = f"--port={free_port()}"
    check_refused(forked.run(tmp_path, [task, "--config=demo", *CPU[:1], port, *args]), message)


@pytest.mark.parametrize(
    ("host", "message"),
    [("", "host: empty"), ("no.such.host.invalid", "host: no.such.host.invalid: "),
     ("203.0.113.7", "host: 203.0.113.7: ")],
)  # fmt: skip
def test_an_address_that_cannot_be_listened_at(host, message, tmp_path):
    done = forked.run(tmp_path, ["play", "--config=demo", *CPU[:1], f"--host={host}"])
    check_refused(done, message)


def test_a_wrong_token_or_path(server):
    for key in ("wrong", TOKEN + "x", TOKEN[:-1]):
        with pytest.raises(openai.AuthenticationError) as caught:
            server.client(api_key=key).images.generate(prompt="a red circle")
        assert caught.value.body["code"] == "invalid_api_key"
    for client, options in ((server.client(), {}), (server.client(api_key="wrong"), {})):
        with pytest.raises(openai.NotFoundError, match="expected POST /v1/images/generations"):
            client.post("/images/edits", cast_to=object, body=options)


def test_a_client_that_goes_away_is_not_waited_for(server):
    """Its request waits behind those of others, and is not made."""
    before = _requests(server).get("499", 0)
    with ThreadPoolExecutor(6) as clients:
        asked = [
            {"prompt": "a red circle", "n": 2, "extra_body": {"seed": 1, "alpha": place / 10}}
            for place in range(6)
        ]
        others = clients.map(lambda each: server.client().images.generate(**each), asked)
        wait_for(server, 6)
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.1).images.generate(prompt="a", extra_body={"alpha": 0.9})
        assert [len(made.data) for made in others] == [2] * 6
    wait_for(server, 0)
    assert _requests(server)["499"] == before + 1
    assert "client disconnected: 1 x 'a'" in server.said()


def _requests(server):
    lines = server.get("/metrics").splitlines()
    found = [line for line in lines if line.startswith("lit_dola_requests_total{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in found}


def flood(server, clients, **more):
    """Ask in as many threads; returns them, and where their replies or errors will be."""
    replies = [None] * clients

    def ask(place):
        try:
            made = server.client().images.generate(
                prompt="a red circle", extra_body={"seed": place, **more}
            )
            replies[place] = contents(made)
        except openai.OpenAIError as error:
            replies[place] = error

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    return threads, replies


def wait_for(server, requests):
    for _ in range(200):
        if f"lit_dola_requests_in_flight {requests}.0" in server.get("/metrics"):
            return
        time.sleep(0.02)
    raise AssertionError(server.get("/metrics"))


def test_a_full_queue_says_so_and_a_killed_server_leaves_nothing(tmp_path):
    with serving(tmp_path, "--max_queue", "3", "--max_wait", "0", fork=True) as server:
        threads, replies = flood(server, 12)
        for thread in threads:
            thread.join()
        full = [reply for reply in replies if isinstance(reply, openai.RateLimitError)]
        made = [reply for reply in replies if isinstance(reply, list)]
        assert len(full) + len(made) == 12
        assert len(made) >= 3
        assert full[0].body["code"] == "queue_full"
        assert full[0].response.headers["Retry-After"] == "5"
        patient = server.client(max_retries=8).images.generate(prompt="a red circle")
        assert len(patient.data) == 1
        check_that_nothing_outlives(server)


def check_that_nothing_outlives(server):
    """Kill the server: the processes that it has started end, too."""
    left = children(server)
    assert len(left) == 3
    server.process.kill()
    server.process.wait()
    for _ in range(200):
        if not any(map(is_alive, left)):
            break
        time.sleep(0.1)
    still_there = [*filter(is_alive, left)]
    for child in still_there:
        os.kill(child, signal.SIGKILL)
    assert still_there == []


@pytest.mark.parametrize(
    ("to", "signum", "workers"),
    [
        ("one process", signal.SIGTERM, 1),
        ("all processes", signal.SIGTERM, 1),
        ("all processes", signal.SIGINT, 2),
    ],
)
def test_no_reply_is_lost_when_it_stops(tmp_path, signum, to, workers):
    """Kubernetes tells one process to stop; a terminal and systemd tell all of them."""
    settings = ("--max_wait", "0", "--model.images_per_batch", "1")
    with serving(tmp_path, *settings, "--trainer.devices", str(workers), fork=True) as server:
        threads, replies = flood(server, 8)
        wait_for(server, 8)
        assert len(children(server)) == 2 + workers  # queues, the process that listens
        if to == "one process":
            server.process.send_signal(signum)
        else:
            os.killpg(server.process.pid, signum)
        code = server.process.wait(timeout=120)
        for thread in threads:
            thread.join()
    assert [type(reply) for reply in replies] == [list] * 8, server.said()
    assert code == 0
    said = server.said()
    assert "stopped; every request has its reply" in said
    assert "Traceback" not in said
    with pytest.raises(openai.APIConnectionError):
        server.client().images.generate(prompt="a red circle")


def test_a_worker_that_dies_ends_the_server_with_a_reply_to_all(tmp_path):
    with serving(tmp_path, "--max_wait", "0", "--model.images_per_batch", "1") as server:
        threads, replies = flood(server, 6)
        wait_for(server, 6)
        os.kill(worker_of(server), signal.SIGKILL)
        for thread in threads:
            thread.join()
        code = server.process.wait(timeout=120)
    errors = [reply for reply in replies if not isinstance(reply, list)]
    assert errors
    assert {error.status_code for error in errors} == {503}
    assert {error.body["code"] for error in errors} == {"worker_died"}
    assert code == 1
    said = server.said()
    assert "error: serve: a process with the model has died" in said
    assert "Traceback" not in said


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(server):
    found = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in found.split()}
    return [pid for pid, command in commands.items() if "resource_tracker" not in command]


def worker_of(server):
    """Return the process that multiprocessing has spawned for the model."""
    for child in children(server):
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            return child
    raise AssertionError(children(server))


def test_no_request_writes_more_than_a_line_into_the_log(server):
    forged = "a\nERROR: forged \x1b[2J"
    with pytest.raises(openai.BadRequestError):
        post(server, json.dumps({"prompt": "a", forged: 1}))
    server.client().images.generate(prompt=forged)
    lines = server.said().splitlines()
    assert [line for line in lines if line.startswith("ERROR: forged")] == []
    assert "\x1b" not in server.said()


def test_health_needs_no_token_and_figures_do(server):
    assert urllib.request.urlopen(f"{server.address}/health").read() == b"ok"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server.address}/metrics")
    assert caught.value.code == 401
