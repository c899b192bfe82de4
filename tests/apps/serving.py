"""Starting a server for a test, as a user would, or faster."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import openai

from tests.support import forked
from tests.support.commands import MAIN

TOKEN = "a-secret"


class ForkedProcess:
    """A forked process with the methods of a ``subprocess.Popen``."""

    def __init__(self, process):
        self.process = process
        self.pid = process.pid
        self.kill = process.kill
        self.terminate = process.terminate

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("main.py", timeout)
        return self.process.exitcode

    def send_signal(self, signum):
        os.kill(self.pid, signum)


class Server:
    """A running ``main.py serve``."""

    def __init__(self, process, port, errors):
        self.process = process
        self.port = port
        self.errors = errors
        self.address = f"http://127.0.0.1:{port}"

    def client(self, **options):
        options = {"api_key": TOKEN, "max_retries": 0, "timeout": 120, **options}
        return openai.OpenAI(base_url=f"{self.address}/v1", **options)

    def get(self, path):
        asked = urllib.request.Request(self.address + path)
        asked.add_header("Authorization", f"Bearer {TOKEN}")
        with urllib.request.urlopen(asked, timeout=30) as reply:
            return reply.read().decode()

    def stop(self, signum=signal.SIGTERM):
        self.process.send_signal(signum)
        return self.process.wait(timeout=120)

    def said(self):
        return self.errors.read_text()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(folder, *settings, task="serve", ready="/health", token=TOKEN, fork=False):
    """Start a server in a folder, and wait until it is ready.

    Args:
        folder: Working folder.
        settings: Settings besides those of the demo; ``{port}`` in them is its port.
        task: The task of the command line.
        ready: Path that answers once it is ready.
        token: The token of clients.
        fork: Fork its processes, so that none has to import torch again.
    """
    port, variables = free_port(), {"LIT_DOLA_API_KEY": token}
    args = [
        task, "--config", "demo", "--port", str(port), "--trainer.accelerator", "cpu",
        *[setting.format(port=port) for setting in settings],
    ]  # fmt: skip
    if fork:
        process = ForkedProcess(forked.start(folder, args, fork_workers, **variables))
        server = Server(process, port, folder / ".stderr")
    else:
        server = Server(started(folder, args, variables), port, folder / "stderr.txt")
    process = server.process
    try:
        wait_until_ready(server, ready)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


def started(folder, args, variables):
    with (folder / "stderr.txt").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, MAIN, *args],
            cwd=folder, env={**os.environ, **variables}, stdout=stderr, stderr=stderr,
            start_new_session=True,
        )  # fmt: skip


def fork_workers():
    """Lead a session, and fork the workers that LitServe would spawn."""
    os.setsid()
    get_context = multiprocessing.get_context
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.get_context = lambda method=None: get_context(
        "fork" if method == "spawn" else method
    )


def wait_until_ready(server, path):
    for _ in range(600):
        assert server.process.poll() is None, server.said()
        try:
            server.get(path)
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"not ready: {server.said()}")
