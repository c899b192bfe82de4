"""Effects of OpenMP's waiting threads on the token loop: on an idle machine, and on a busy one.

OpenMP reads its environment once per process, so each setting has a process of its own. They run
in turns; a process sleeps while it waits for its turn.
"""

import json
import os
import subprocess
import sys
from statistics import median
from time import perf_counter

import torch
from jsonargparse import auto_cli

from benchmarks.models import PAD, Preset, make_scoring, random_janus, random_prompts
from lit_dola.decoding import loop

SETTINGS = {
    "torch's default": {"GOMP_SPINCOUNT": "300000"},  # libgomp's own default, in its source
    "lit-dola's default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""Variables of the environment by setting."""
_VARIABLES = {"GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"}


def threads(
    preset: Preset = "small", images: int = 1, tokens: int = 12, busy: int = 6, repeats: int = 5
) -> None:
    """Print the time of each setting over the first setting's time on the idle machine.

    Args:
        preset: Size of the model.
        images: Images per batch.
        tokens: Tokens per image.
        busy: Processes that make the machine busy.
        repeats: Turns, idle and again busy.
    """
    work = json.dumps([preset, images, tokens])
    workers = {name: _start(variables, work) for name, variables in SETTINGS.items()}
    _turns(workers, 1)  # the first run of a process is slower
    idle = _turns(workers, repeats)
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        loaded = _turns(workers, repeats)
    finally:
        for process in load:
            process.kill()
        for worker in workers.values():
            worker.kill()
    reference = next(iter(idle.values()))
    print(f"| {preset}, {images} images | idle | {busy} busy processes |\n| --- | --- | --- |")
    for name in SETTINGS:
        print(f"| {name} | {_told(idle[name], reference)} | {_told(loaded[name], reference)} |")


def _told(times: list[float], reference: list[float]) -> str:
    ratios = [time / base for time, base in zip(times, reference)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _start(variables: dict[str, str], work: str) -> "subprocess.Popen[str]":
    environment = {key: value for key, value in os.environ.items() if key not in _VARIABLES}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.threads", "--worker", work],
        env={**environment, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _turns(workers: dict[str, "subprocess.Popen[str]"], repeats: int) -> dict[str, list[float]]:
    """Let every process generate in turns; returns the seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            seconds[name].append(float(worker.stdout.readline()))
    return seconds


def _work(preset: Preset, images: int, tokens: int) -> None:
    """Generate once per line of stdin, and print the seconds."""
    janus = random_janus(preset, tokens, torch.float32, torch.device("cpu"))
    generate = loop.TokenGenerator(
        janus, janus.image_head, make_scoring(), layer=4, max_new_tokens=tokens
    )
    prompts = [loop.cfg_pair(ids, PAD) for ids in random_prompts(images)]
    for _ in sys.stdin:
        began = perf_counter()
        generate(prompts, [(place, 0) for place in range(images)])
        print(perf_counter() - began, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _work(*json.loads(sys.argv[2]))
    else:
        auto_cli(threads)
