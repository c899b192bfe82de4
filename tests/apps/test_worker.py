"""What a worker makes of the requests that wait, without a server."""

import logging
import os
import queue
import signal
from pathlib import Path

import pytest

pytest.importorskip("litserve")

from lit_dola import JanusPipeline
from lit_dola.apps.openai import ImageJob
from lit_dola.apps.server import why_it_ended
from lit_dola.apps.worker import ImagesAPI, Payload, Shared, SharedBatches, by_settings
from lit_dola.errors import UserError
from lit_dola.pipeline import ImageCall


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return JanusPipeline.from_pretrained(str(tiny_checkpoint))


@pytest.fixture
def api(pipeline):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    api = ImagesAPI(lambda device: pipeline, {}, Shared.of(8, 1))
    api.pipeline = pipeline
    yield api
    for signum, handler in before.items():
        signal.signal(signum, handler)


def payload(slot, prompt="a red apple", images=1, seed=0, **settings):
    return Payload(ImageJob(ImageCall(prompt, images, seed), settings), slot, Path("unused"))


def requests(*payloads):
    return [(0, f"uid-{place}", 0.0, each) for place, each in enumerate(payloads)]


class Transport:
    def __init__(self):
        self.sent = {}

    def send(self, item, consumer_id):
        uid, (outcome, *_) = item
        assert uid not in self.sent
        self.sent[uid] = outcome


def serve_once(api, *payloads, **how):
    waiting, transport = queue.Queue(), Transport()
    for request in requests(*payloads):
        waiting.put(request)
    SharedBatches(how.get("max_images", 16), 0.01).run(
        api, "cpu", 0, waiting, transport, None, None
    )
    return transport.sent


def test_requests_with_the_same_settings_are_one_group():
    groups = by_settings(
        requests(
            payload(0), payload(1, alpha=0.2, top_k=3), payload(2, seed=7),
            payload(3, top_k=3, alpha=0.2), payload(4, alpha=0.3),
        )
    )  # fmt: skip
    slots = [[each.slot for _, _, _, each in group] for group in groups.values()]
    assert slots == [[0, 2], [1, 3], [4]]


@pytest.mark.slow
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_bad_request_fails_alone(api, pipeline, bad):
    payloads = [payload(place, seed=place) for place in range(3)]
    payloads[bad] = payload(bad, prompt="apple " * 5000)
    sent = serve_once(api, *payloads)
    assert len(sent) == 3
    for place, outcome in enumerate(sent.values()):
        if place == bad:
            assert outcome.param == "prompt"
            assert outcome.error.startswith("prompt: prompt has ")
        else:
            (image,) = outcome.images
            alone = pipeline("a red apple", parallel_size=1, seed=place, progress=False)
            assert image.content == alone.encode()


def test_an_error_of_the_model_is_not_the_clients(api, monkeypatch, caplog):
    def fail(*args, **settings):
        raise UserError("out of memory at 1 image")

    monkeypatch.setattr(api.pipeline, "generate_each", fail)
    (outcome,) = serve_once(api, payload(0)).values()
    assert outcome.error == "out of memory at 1 image"
    assert outcome.param is None
    assert "out of memory" in caplog.text


def test_an_unexpected_error_is_in_the_log_and_not_in_the_reply(api, monkeypatch, caplog):
    def fail(*args, **settings):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(api.pipeline, "generate_each", fail)
    sent = serve_once(api, payload(0), payload(1))
    assert [outcome.error for outcome in sent.values()] == ["internal error, see the log"] * 2
    assert "secret" in caplog.text


def test_images_that_cannot_be_written_are_no_fault_of_the_others(api, tmp_path):
    (tmp_path / "file").write_text("")
    job = ImageJob(ImageCall("a red apple"), response_format="url")
    nowhere = Payload(job, 0, tmp_path / "file")
    somewhere = Payload(job, 1, tmp_path / "folder")
    first, second = serve_once(api, nowhere, somewhere).values()
    assert first.error.startswith(f"folder: cannot write to {tmp_path / 'file'}")
    assert first.param is None
    assert second.images[0].file.exists()


def test_what_nobody_waits_for_is_not_made(api):
    api.shared.disconnected[1] = True
    first, second, third = serve_once(api, payload(0), payload(1), payload(2)).values()
    assert (len(first.images), len(second.images), len(third.images)) == (1, 0, 1)
    assert first.at_once == 2
    assert second.error == "client disconnected"


def test_work_stops_when_the_last_client_goes_away(api, monkeypatch):
    steps = []

    def leave_after(step):
        steps.append(step.index)
        if len(steps) == 3:
            api.shared.disconnected[0] = api.shared.disconnected[1] = True

    generate_each = api.pipeline.generate_each

    def watched(calls, callback_on_step, **settings):
        def both(step):
            leave_after(step)
            callback_on_step(step)

        return generate_each(calls, callback_on_step=both, **settings)

    monkeypatch.setattr(api.pipeline, "generate_each", watched)
    sent = serve_once(api, payload(0), payload(1))
    assert [outcome.error for outcome in sent.values()] == ["client disconnected"] * 2
    assert len(steps) == 3


def test_a_batch_takes_no_more_than_its_images(api):
    waiting = queue.Queue()
    for request in requests(*(payload(place, images=2) for place in range(5))):
        waiting.put(request)
    loop, transport = SharedBatches(4, 0.01), Transport()
    sizes = []
    while not waiting.empty():
        before = len(transport.sent)
        loop.run(api, "cpu", 0, waiting, transport, None, None)
        sizes.append(len(transport.sent) - before)
    assert sizes == [2, 2, 1]


def test_a_worker_without_a_server_ends(api):
    class Gone:
        def get(self, timeout):
            raise EOFError

    with pytest.raises(SystemExit):
        SharedBatches(4, 0.01).run(api, "cpu", 0, Gone(), Transport(), None, None)


def test_images_are_made_in_one_batch(api):
    sent = serve_once(api, payload(0, images=2), payload(1, seed=4), payload(2, images=3))
    assert [outcome.at_once for outcome in sent.values()] == [6, 6, 6]
    assert [len(outcome.images) for outcome in sent.values()] == [2, 1, 3]


def test_a_worker_outlives_signals_until_the_last_reply(api, monkeypatch):
    monkeypatch.setenv("LITSERVE_WORKER_ID", "0")
    api.setup("cpu")
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM)  # not yet
    api.shared.drained[0] = True
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # it is ending already
    assert api.shared.pids[0] == os.getpid()
    assert api.health()


def test_a_model_that_cannot_be_loaded_says_why(api, monkeypatch):
    def fail(device):
        raise UserError("model.safetensors: broken")

    api.load = fail
    with pytest.raises(UserError):
        api.setup("cpu")
    logging.getLogger("litserve").setLevel(logging.INFO)
    assert str(why_it_ended(api.shared)) == "model.safetensors: broken"
