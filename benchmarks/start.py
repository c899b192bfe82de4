"""Processor time until a command does something, and which packages it is spent on importing.

    python -m benchmarks.start

``predict`` ends at its first bar, on the small Janus of this repository. Times are those of the
processor, with one thread, so that other processes hardly change them.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from statistics import median

from jsonargparse import auto_cli

_CODE = """
import os, sys, time
from lit_dola.cli import main
def tell(*_):
    print("CPU", time.process_time(), file=sys.__stdout__, flush=True)
    os._exit(0)
if "predict" in sys.argv:
    import builtins
    real = builtins.__import__
    def watched(name, *args, **kwargs):
        module = real(name, *args, **kwargs)
        progress = sys.modules.get("lit_dola.callbacks.progress")
        if hasattr(progress, "RunProgress"):
            progress.RunProgress.on_predict_start = tell
            builtins.__import__ = real
        return module
    builtins.__import__ = watched
try:
    main(sys.argv[1:])
finally:
    tell()
"""
_IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")


def main(repeats: int = 5) -> None:
    """Measure each command several times.

    Args:
        repeats: Runs of each command.
    """
    with tempfile.TemporaryDirectory() as folder:
        predict = ["predict", "--config=configs/demo.yaml", f"--writer.output_dir={folder}/run"]
        print("| command | CPU, median | lowest to highest |\n| --- | ---: | ---: |")
        for command in (["--version"], ["--help"], ["status", "--help"], predict):
            times = sorted(_time(command) for _ in range(repeats))
            name = " ".join(command[:2]) if command is not predict else "predict, to its first bar"
            print(f"| `{name}` | {median(times):.2f} s | {times[0]:.2f} to {times[-1]:.2f} s |")
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", _CODE, *predict],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
    spent: Counter[str] = Counter()
    for microseconds, module in _IMPORTED.findall(done.stderr):
        spent[_package(module)] += int(microseconds)
    print("\n| imports of `predict` | of all |\n| --- | ---: |")
    for package, microseconds in spent.most_common(8):
        print(f"| {package} | {100 * microseconds / spent.total():.0f} % |")


def _time(command: list[str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split("CPU ")[-1])


def _package(module: str) -> str:
    parts = module.split(".")
    return (
        ".".join(parts[:2])
        if module.startswith(("torch._dynamo", "torch.distributed"))
        else parts[0]
    )


if __name__ == "__main__":
    auto_cli(main)
