"""Costs of a large run on the host besides its images: before and after it, and on resume.

    python -m benchmarks.host --prompts "[10000, 100000]"

Each measurement is a ``predict`` in a process of its own, with the small Janus of this repository.
It ends at the first batch, or has nothing to do, because every image and record is there, or it is
an ``export`` of them: records are synthetic, the images hard links of a few. ``CPU`` is the
processor time, ``memory`` the highest resident memory, both less those of the same command for a
single prompt.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from jsonargparse import auto_cli
from lightning.pytorch.callbacks import Callback
from PIL import Image

from lit_dola.runs.files import safe_name

IMAGES_PER_PROMPT = 8
_LINKS = 50_000
"""Hard links to one file: file systems limit them."""
_WORDS = ("a", "photo", "of", "one", "red", "green", "small", "large", "bench", "zebra", "clock")


class Cost(NamedTuple):
    """Resources that a process has taken."""

    cpu: float
    """Seconds of processor time."""
    memory: float
    """MB."""
    wall: float
    """Seconds."""


class StopAtFirstBatch(Callback):
    """Ends the process at the first batch, telling what it has taken."""

    def on_predict_batch_start(self, *_: object) -> None:
        """End."""
        _tell()
        os._exit(0)


def _tell() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(json.dumps({"cpu": cpu, "memory": memory}), flush=True)


def run_main(args: list[str]) -> None:
    """Run a command, and tell what it has taken: the process that is measured."""
    from lit_dola.cli import main

    main(args)
    _tell()


FIRST, DONE = "to the first batch", "nothing to do"
WHATS = (FIRST, DONE, "export webdataset", "export parquet")


def main(prompts: list[int] | None = None, whats: list[str] | None = None) -> None:
    """Measure runs of several sizes.

    Args:
        prompts: Numbers of prompts, with eight images each.
        whats: Which rows to measure; null: all.
    """
    print("| images | what | CPU | memory | wall |\n| ---: | --- | ---: | ---: | ---: |")
    for what in whats or WHATS:
        for count in prompts or [1250, 12500, 100_000]:
            with tempfile.TemporaryDirectory() as folder:
                base = _measure(Path(folder) / "base", 1, what)
                cost = _measure(Path(folder) / "run", count, what)
            print(
                f"| {count * IMAGES_PER_PROMPT:,} | {what} | {cost.cpu - base.cpu:.1f} s |"
                f" {cost.memory - base.memory:.0f} MB | {cost.wall - base.wall:.1f} s |",
                flush=True,
            )


def _measure(folder: Path, prompts: int, what: str) -> Cost:
    folder.mkdir()
    texts = [_prompt(index) for index in range(prompts)]
    entries = [
        {"prompt": text, "tag": "two_object", "id": f"{i:06}"} for i, text in enumerate(texts)
    ]
    (folder / "prompt.json").write_text(json.dumps(entries))
    args = [
        "predict", "--config=configs/demo.yaml", f"--data.prompt_json={folder / 'prompt.json'}",
        f"--writer.output_dir={folder / 'out'}", f"--model.parallel_size={IMAGES_PER_PROMPT}",
    ]  # fmt: skip
    if what == FIRST:
        args.append("--trainer.callbacks+=benchmarks.host.StopAtFirstBatch")
    else:
        first = [*args, f"--data.prompt_json={folder / 'one.json'}"]
        (folder / "one.json").write_text(json.dumps(entries[:1]))
        _run(first)
        _fill(folder / "out", entries)
        (folder / "out" / "run.json").touch()  # as at the end of the run that made them
        _run(args)  # with everything there, it has nothing to make, but pages to write
    if what.startswith("export"):
        args = [*what.split(), str(folder / "out"), f"--output={folder / 'exported'}"]
    return _run(args)


def _prompt(index: int) -> str:
    """Return one of many prompts, of 4 to 16 words."""
    words = [
        _WORDS[(index * 7 + place * place + index // 17) % len(_WORDS)]
        for place in range(4 + index % 13)
    ]
    return " ".join([*words, str(index)])


def _fill(out: Path, entries: list[dict[str, str]]) -> None:
    """Make images and records of all entries out of those of the first one."""
    (line, *_) = (out / "metadata.jsonl").read_text().splitlines()
    record = json.loads(line)
    sources = [
        out / f"source-{number}" for number in range(len(entries) * IMAGES_PER_PROMPT // _LINKS + 1)
    ]
    with Image.open(out / record["file_name"]) as image:
        for source in sources:
            image.save(source, "PNG")
    made = 0
    with (out / "metadata.jsonl").open("w") as log:
        for index, entry in enumerate(entries):
            name = f"{index:05}_{safe_name(entry['prompt'])}"
            (out / name).mkdir(exist_ok=True)
            metadata = {name: entry[name] for name in ("tag", "id")}
            for number in range(IMAGES_PER_PROMPT):
                file = f"{name}/img_{number:02}.png"
                (out / file).unlink(missing_ok=True)
                os.link(sources[made // _LINKS], out / file)
                made += 1
                log.write(json.dumps({
                    **record, "file_name": file, "prompt": entry["prompt"], "prompt_index": index,
                    "image_index": number, "metadata": metadata,
                }) + "\n")  # fmt: skip


def _run(args: list[str]) -> Cost:
    command = [sys.executable, "-m", "benchmarks.host", "--run", json.dumps(args)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    told = json.loads(done.stdout.splitlines()[-1])
    return Cost(told["cpu"], told["memory"], time.perf_counter() - began)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run_main(json.loads(sys.argv[2]))
    else:
        auto_cli(main)
