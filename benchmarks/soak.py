"""Memory and open files over a long run: 2,000 prompts through the command line.

python -m benchmarks.soak
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback

from lit_dola.cli import main as lit_dola
from recipes.small_janus import make_random_janus

MAX_BYTES_PER_IMAGE = 4096
"""A third of one image's pixels; over 1,000 images the allocator alone varies by 1 KiB each."""


class Watch(Callback):
    """Records, after each batch, the images made, the resident memory and the open files."""

    samples: list[tuple[int, int, int]]

    def __init__(self) -> None:
        Watch.samples = []

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Take a sample."""
        made = (self.samples[-1][0] if self.samples else 0) + len(args[3])
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.samples.append(
            (made, pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")))
        )


def main() -> None:
    """Run, and exit with 1 if memory or open files grow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=2000)
    prompts = parser.parse_args().prompts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_random_janus(folder / "janus", image_size=64)
        texts = [f"{n} red apples" for n in range(prompts)]
        (folder / "prompt.json").write_text(json.dumps(texts))
        sys.argv = ["main.py"]
        lit_dola([
            "predict", "--trainer.accelerator=cpu", "--trainer.devices=1",
            "--trainer.callbacks+=benchmarks.soak.Watch", "--model.parallel_size=1",
            f"--model.model_path={folder / 'janus'}", "--model.images_per_batch=8",
            f"--data.prompt_json={folder / 'prompt.json'}", f"--writer.output_dir={folder / 'out'}",
        ])  # fmt: skip
        assert len(list(folder.glob("out/*/*.jpg"))) == prompts
    from benchmarks.soak import Watch as Watched  # this file is also __main__

    images, memory, files = np.array(Watched.samples[len(Watched.samples) // 2 :]).T
    slope = np.polyfit(images, memory, 1)[0]
    print(f"{prompts} prompts; the second half, by least squares:")
    print(f"memory {slope:+.0f} bytes per image, {memory[0] / 2**20:.0f} MiB at the start")
    print(f"open files {files.min()} to {files.max()}")
    if slope > MAX_BYTES_PER_IMAGE or files.max() - files.min() > 8:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
