"""Starting a server for a test, as a user would."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import openai

from tests.support.commands import MAIN

TOKEN = "a-secret"


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
def serving(folder, *settings, task="serve", ready="/health", token=TOKEN):
    """Start a server in a folder, and wait until it is ready."""
    port, errors = free_port(), folder / "stderr.txt"
    environment = {**os.environ, "LIT_DOLA_API_KEY": token}
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, MAIN, task, "--config", "demo", "--port", str(port),
                "--trainer.accelerator", "cpu", *settings,
            ],
            cwd=folder, env=environment, stdout=stderr, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    server = Server(process, port, errors)
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


def wait_until_ready(server, path):
    for _ in range(600):
        assert server.process.poll() is None, server.said()
        try:
            server.get(path)
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"not ready: {server.said()}")
