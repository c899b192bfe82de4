"""Generates images and uploads them as a dataset.

    uv run --with WHEEL generate.py OWNER/DATASET --data.prompts "a red circle"

Settings are those of ``predict``. The run lies in ``/runs``, or where ``RUNS`` says.
"""

import os
import sys

from lit_dola.cli import main


def generate(dataset: str, settings: list[str]) -> None:
    """Generate images, then upload them; either step resumes what an earlier attempt has left."""
    folder = os.environ.get("RUNS", "/runs")
    run, shards = f"{folder}/{dataset}/run", f"{folder}/{dataset}/parquet"
    main(["predict", "--config=dola", f"--writer.output_dir={run}", *settings])
    main(["export", "parquet", run, f"--output={shards}", f"--push={dataset}"])


if __name__ == "__main__":
    generate(sys.argv[1], sys.argv[2:])
