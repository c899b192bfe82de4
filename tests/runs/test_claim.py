"""Several runs in one folder at once, as real processes: no line is lost, no settings are mixed."""

import json
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lit_dola.errors import UserError
from lit_dola.runs import records
from lit_dola.runs.claim import Claim, alone_in
from lit_dola.runs.files import append_line, write_atomically
from lit_dola.runs.record_log import RecordLog

context = multiprocessing.get_context("fork")


def start(function, *args):
    process = context.Process(target=function, args=args)
    process.start()
    return process


def end(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def hold(folder, content, ready, leave):
    claim = Claim(folder, content)
    claim.take()
    ready.set()
    leave.wait(60)
    claim.release()


@pytest.fixture
def other_run(tmp_path):
    """Another run in the folder; returns its process, and an event that ends it."""
    started = []

    def begin(**content):
        ready, leave = context.Event(), context.Event()
        process = start(hold, tmp_path, content, ready, leave)
        started.append((process, leave))
        assert ready.wait(60)
        return process, leave

    yield begin
    for process, _ in started:
        process.kill()  # setting the event would wait for a process that was killed


def test_other_settings_are_refused_and_equal_ones_join(tmp_path, other_run):
    process, leave = other_run(alpha=0.1, prompts="a")
    message = rf"process {process.pid} on .* is writing to .* with alpha 0.1, here 0.2; expected"
    with pytest.raises(UserError, match=message):
        Claim(tmp_path, {"alpha": 0.2, "prompts": "a"}).take()
    with pytest.raises(UserError, match="with prompts"):
        Claim(tmp_path, {"alpha": 0.1, "prompts": "b"}).take()
    joined = Claim(tmp_path, {"alpha": 0.1, "prompts": "a"})
    joined.take()
    assert len(joined.others()) == 1
    leave.set()
    process.join()
    assert joined.others() == set()
    with pytest.raises(
        UserError, match=r"with alpha 0\.1, here 0\.2"
    ):  # the folder is still claimed
        Claim(tmp_path, {"alpha": 0.2, "prompts": "a"}).take()
    joined.release()
    last = Claim(tmp_path, {"alpha": 0.2, "prompts": "a"})
    last.take()
    last.release()
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


def test_a_claim_of_a_dead_run_does_not_count(tmp_path, other_run):
    process, _ = other_run(alpha=0.1)
    process.kill()
    process.join()
    assert len(list(tmp_path.glob(".run-*"))) == 2
    claim = Claim(tmp_path, {"alpha": 0.2})
    claim.take()
    assert claim.others() == set()
    claim.release()
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


def claim_at(moment, folder, alpha, claimed):
    while time.monotonic() < moment:
        pass
    claim = Claim(folder, {"alpha": alpha})
    with suppress(UserError):
        claim.take()
        claimed.put(alpha)
        time.sleep(0.2)  # both must have tried before one gives up the folder
        claim.release()


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(20))
def test_of_two_runs_started_at_once_one_wins(repetition, tmp_path):
    claimed = context.Queue()
    moment = time.monotonic() + 0.1
    both = [start(claim_at, moment, tmp_path, alpha, claimed) for alpha in (0.1, 0.2)]
    assert end(both) == [0, 0]
    winner = claimed.get(timeout=5)
    assert winner in (0.1, 0.2)
    assert claimed.empty()


def slow_write(path, content):
    """Write a merged log only after other runs have had time to append."""
    lines = list(content)
    time.sleep(0.02)
    write_atomically(path, lines)


def append_and_merge(folder, first, count):
    """As a run does: claim, append lines, merge now and then as its end does."""
    records.write_atomically = slow_write
    claim = Claim(folder, {})
    claim.take()
    log = RecordLog(folder, ImageRecord)
    for image in range(count):
        line = {"file": "x", "prompt": "a", "prompt_index": first, "image_index": image}
        append_line(log.of_rank(0, claim.token), line)
        if image % 8 == 7:
            with alone_in(folder):
                log.merge(living={*claim.others(), claim.token})
        time.sleep(0.001)
    with alone_in(folder):
        log.merge(living=claim.others())
    claim.release()


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(20))
def test_no_line_is_lost_while_others_merge(repetition, tmp_path):
    runs = [start(append_and_merge, tmp_path, first, 16) for first in range(4)]
    assert end(runs) == [0] * 4
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").open()]
    places = [(line["prompt_index"], line["image_index"]) for line in lines]
    assert places == [(prompt, image) for prompt in range(4) for image in range(16)]
    left = {path.name for path in tmp_path.iterdir()} - {".run.lock"}
    assert left == {"metadata.jsonl"}


def write_often(folder, value):
    os.getpid = lambda: 7  # as in two containers that share a volume
    for _ in range(100):
        write_atomically(folder / "img_00.jpg", [bytes([value]) * 5000, bytes([value]) * 5000])


@pytest.mark.slow
def test_containers_with_equal_process_ids_do_not_share_temporary_files(tmp_path):
    both = [start(write_often, tmp_path, value) for value in (1, 2)]
    while any(process.is_alive() for process in both):
        with suppress(FileNotFoundError):
            content = (tmp_path / "img_00.jpg").read_bytes()
            assert len(content) == 10_000
            assert len(set(content)) == 1
    assert end(both) == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["img_00.jpg"]


def test_a_stopped_run_keeps_its_claim(tmp_path, other_run):
    """A lock, unlike a file with a time in it, holds as long as the process lives."""
    process, _ = other_run(alpha=0.1)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(UserError, match=r"with alpha 0\.1, here 0\.2"):
            Claim(tmp_path, {"alpha": 0.2}).take()
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_an_edited_claim_is_no_traceback(tmp_path, other_run):
    other_run(alpha=0.1)
    (path,) = Path(tmp_path).glob(".run-*.json")
    for text in ("", "[", "3", "[]"):
        path.write_text(text)
        claim = Claim(tmp_path, {"alpha": 0.1})
        with suppress(UserError):
            claim.take()
            claim.release()
