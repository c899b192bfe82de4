"""The batch script for Slurm, with a ``srun`` that only tells how it was called."""

import os
import re
import subprocess

import pytest

from tests.support.commands import ROOT

SCRIPT = ROOT / "recipes/slurm/predict.sbatch"


@pytest.mark.parametrize("nodes", [None, 3])
def test_it_asks_for_as_many_processes_as_the_trainer_uses(nodes, tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    if nodes:  # sbatch --nodes 3
        environment["SLURM_JOB_NUM_NODES"] = str(nodes)
    done = subprocess.run(
        ["bash", str(SCRIPT), "--data.prompt_json", "my prompts.jsonl"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    args = done.stdout.splitlines()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", SCRIPT.read_text(), re.M))
    devices, num_nodes = (
        args[args.index(f"--trainer.{it}") + 1] for it in ("devices", "num_nodes")
    )
    assert devices == asked["ntasks-per-node"] == asked["gres"].removeprefix("gpu:")
    assert num_nodes == (str(nodes) if nodes else asked["nodes"])
    assert args[-2:] == ["--data.prompt_json", "my prompts.jsonl"]
    assert (ROOT / args[args.index("--config") + 1]).exists()
    assert asked["signal"].startswith("SIGUSR1@")
