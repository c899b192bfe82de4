"""Several runs and one folder, as real processes: one run at a time writes into it."""

import errno
import json
import multiprocessing
import os
import re
import signal
import socket
from contextlib import suppress

import pytest

from lit_dola.errors import UserError
from lit_dola.runs.claim import Claim, holder_of
from lit_dola.runs.files import write_atomically

context = multiprocessing.get_context("fork")


def start(function, *args):
    process = context.Process(target=function, args=args)
    process.start()
    return process


def end(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def hold(folder, ready, leave):
    claim = Claim(folder)
    claim.take()
    ready.set()
    leave.wait(60)
    claim.release()


@pytest.fixture
def other_run(tmp_path):
    """Another run in the folder; returns its process, and an event that ends it."""
    started = []

    def begin():
        ready, leave = context.Event(), context.Event()
        process = start(hold, tmp_path, ready, leave)
        started.append((process, leave))
        assert ready.wait(60)
        return process, leave

    yield begin
    for process, _ in started:
        process.kill()  # setting the event would wait for a process that was killed


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("lit_dola.runs.claim._PATIENCE", 0.05)


def refused(folder):
    with pytest.raises(UserError) as caught:
        Claim(folder).take()
    return str(caught.value)


def test_a_second_run_is_refused_until_the_first_ends(tmp_path, other_run):
    process, leave = other_run()
    assert re.fullmatch(
        rf"writer\.output_dir: process {process.pid} on {socket.gethostname()} has been writing to"
        rf" {tmp_path} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d; expected another folder, or that run"
        " to end first",
        refused(tmp_path),
    )
    assert holder_of(tmp_path).process == process.pid
    leave.set()
    process.join()
    assert holder_of(tmp_path) is None
    claim = Claim(tmp_path)
    claim.take()
    refused(tmp_path)  # also by another run of the same process
    claim.release()
    claim.release()  # twice is once
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


def test_a_claim_of_a_dead_run_does_not_count(tmp_path, other_run):
    process, _ = other_run()
    process.kill()
    process.join()
    assert holder_of(tmp_path) is None
    claim = Claim(tmp_path)
    claim.take()
    claim.release()
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


def test_looking_at_a_folder_does_not_refuse_a_run(tmp_path, monkeypatch):
    """A run that starts just when ``status`` holds the lock waits for it."""
    monkeypatch.setattr("lit_dola.runs.claim._PATIENCE", 1.0)
    stop = context.Event()

    def look():
        while not stop.is_set():
            holder_of(tmp_path)

    (tmp_path / ".run.lock").touch()
    watcher = start(look)
    try:
        for _ in range(50):
            claim = Claim(tmp_path)
            claim.take()
            claim.release()
    finally:
        stop.set()
        watcher.join()


def claim_at_once(both, folder, name, claimed):
    claim = Claim(folder)
    both.wait(60)
    with suppress(UserError):
        claim.take()
        claimed.put(name)
    both.wait(60)  # both must have tried before one gives up the folder
    claim.release()


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(8))
def test_of_two_runs_started_at_once_one_wins(repetition, tmp_path):
    claimed = context.Queue()
    meet = context.Barrier(2)
    both = [start(claim_at_once, meet, tmp_path, name, claimed) for name in "ab"]
    assert end(both) == [0, 0]
    assert claimed.get(timeout=5) in "ab"
    assert claimed.empty()


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
    process, _ = other_run()
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert f"process {process.pid} on" in refused(tmp_path)
    finally:
        os.kill(process.pid, signal.SIGCONT)


@pytest.mark.parametrize("text", ["", "[", "3", "[]", '{"host": "a"}', "{}"])
def test_an_edited_claim_is_no_traceback(tmp_path, other_run, text):
    other_run()
    (tmp_path / ".run.json").write_text(text)
    assert "has been writing to" in refused(tmp_path)


@pytest.fixture(params=["the lock is read", "nothing is readable but the holder"])
def may_not_write(request, monkeypatch, other_run):
    """This process may not write to the folder: it is another user's, or mounted read-only."""

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    process, _ = other_run()
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    if request.param != "the lock is read":
        opened = os.open
        monkeypatch.setattr(
            os,
            "open",
            lambda path, *how: refuse() if "run.lock" in str(path) else opened(path, *how),
        )
    return process


def test_who_may_not_write_sees_whether_a_run_lives(may_not_write, tmp_path):
    process = may_not_write
    assert holder_of(tmp_path).process == process.pid
    process.kill()
    process.join()
    assert (tmp_path / ".run.json").exists()  # it could not tidy up
    assert holder_of(tmp_path) is None


def test_a_run_on_another_host_is_not_known_to_be_dead(may_not_write, tmp_path, request):
    process = may_not_write
    about = json.loads((tmp_path / ".run.json").read_text())
    (tmp_path / ".run.json").write_text(json.dumps({**about, "host": "elsewhere"}))
    process.kill()
    process.join()
    known_to_be_free = "lock is read" in request.node.name  # a local file system's lock is known
    assert (holder_of(tmp_path) is None) == known_to_be_free
