"""Helpers for tests of whole runs: paths, arguments, and reading a run's files."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "main.py"
CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"]


def run(*command, cwd):
    """Run Python in its own process."""
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def ddp(count, strategy="ddp"):
    return [f"--trainer.devices={count}", f"--trainer.strategy={strategy}"]


def succeed(done):
    assert done.returncode == 0, done.stderr
    return done


def one_line(done, code, message):
    """Check that a command failed with one line on stderr."""
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def records(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").open(encoding="utf-8")]


def files(folder):
    """Return the content of every file of a run but its lock, by its relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".run.lock"
    }
