"""Helpers for tests of whole runs: paths, arguments, and reading a run's files."""

import json
import re
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


_NARRATION = re.compile(
    r".* on .*, .*: [\d,]+ (image|answer|ranking)s? to generate.*; writing to .*"
    r"|.*([\d,]+ (image|answer|ranking)s? (in [\d:]+, .*|generated.*)|nothing to do: .*); open .*"
    r"|checking [\w ]+"
)
"""The first and the last line of a run, and those of a verification."""


def messages(stderr):
    """Return what a command said on stderr besides the first and the last lines of its runs."""
    lines = stderr.splitlines(keepends=True)
    return "".join(line for line in lines if not _NARRATION.fullmatch(line.rstrip("\n")))


def one_line(done, code, message):
    """Check that a command failed with one line on stderr."""
    assert done.returncode == code
    said = messages(done.stderr)
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said
    assert "Traceback" not in done.stderr + done.stdout


def records(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").open(encoding="utf-8")]


def files(folder):
    """Return the content of the files of a run that another run would write alike, by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".run.lock", "run.json")
    }
