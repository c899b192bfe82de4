"""Recipes for arrays of jobs, clouds and Hugging Face Jobs, as far as they run without those."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_dola.cli.arguments import read_arguments
from tests.support.commands import CPU, ROOT, one_line, records, run, succeed
from tests.support.hub import hub

RECIPES = ROOT / "recipes"
SCRIPTS = sorted([*RECIPES.rglob("*.sbatch"), *RECIPES.rglob("*.sh")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("task", [0, 3])
def test_a_task_of_an_array_has_its_own_prompts_and_folder(task, tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PER_TASK": "10",
        "SLURM_ARRAY_TASK_ID": str(task),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(RECIPES / "slurm/array.sbatch"), "--data.prompt_json", "my prompts.jsonl"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    args = done.stdout.splitlines()
    assert args[args.index("--data.prompt_range") + 1] == f"[{10 * task}, {10 * task + 10}]"
    assert args[args.index("--writer.output_dir") + 1] == f"outputs/array/{task}"
    assert args[-2:] == ["--data.prompt_json", "my prompts.jsonl"]
    assert read_arguments(args[2:]).task == "predict"


@pytest.mark.slow
def test_the_parts_of_an_array_are_the_whole(main_here, tmp_path, tiny_checkpoint):
    (tmp_path / "prompt.json").write_text(json.dumps(["a cat", "a dog", "", "a bird", "a cow"]))

    def predict(folder, *args):
        return main_here(
            tmp_path, "predict", *CPU, f"--model.model_path={tiny_checkpoint}",
            "--model.parallel_size=2", f"--writer.output_dir={folder}", "--data.on_error=skip",
            *args,
        )  # fmt: skip

    assert predict("whole").returncode == 3
    whole = [(it["file_name"], (tmp_path / "whole" / it["file_name"]).read_bytes())
             for it in records(tmp_path / "whole")]  # fmt: skip
    parts = []
    for first, code in ((0, 0), (2, 3), (4, 0)):
        folder = f"part-{first}"
        done = predict(folder, f"--data.prompt_range=[{first}, {first + 2}]")
        assert done.returncode == code  # the empty prompt is of the second part alone
        parts += [(it["file_name"], (tmp_path / folder / it["file_name"]).read_bytes())
                  for it in records(tmp_path / folder)]  # fmt: skip
    assert parts == whole
    done = predict("none", "--data.prompt_range=[5, 9]")
    one_line(
        done, 1, "data.prompt_range: no prompt in [5, 9]; expected a range of the indices 0 to 4"
    )


def test_skypilot():
    """Its keys are those of SkyPilot's tasks, and its command is one of this program."""
    task = yaml.safe_load((RECIPES / "skypilot/predict.yaml").read_text())
    known = {
        "name", "workdir", "num_nodes", "resources", "envs", "secrets", "volumes", "file_mounts",
        "config", "setup", "run",
    }  # fmt: skip
    assert task.keys() <= known
    assert task["file_mounts"]["/runs"]["mode"] in ("MOUNT", "MOUNT_CACHED", "COPY")
    for name in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[name], text=True, check=True)
    assert (ROOT / task["envs"]["PROMPTS"]).exists()
    args = task["run"].split("main.py ")[1].replace("\\\n", " ").split()
    assert read_arguments(args).task == "predict"
    given = {"SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS",
             "SKYPILOT_NUM_GPUS_PER_NODE"}  # fmt: skip
    assert {*re.findall(r"\$(SKYPILOT_\w+)", task["run"])} == given


@pytest.mark.slow
def test_a_job_on_the_hub_is_understood(tmp_path):
    """The hub's own command line reads it, and submits nothing."""
    command = Path(sys.executable).with_name("hf")
    if not command.exists() or "--dry-run" not in _help(command):
        pytest.skip("the hub's command line is older")
    wheel = "https://example.org/lit_dola-0.3.0-py3-none-any.whl"
    done = subprocess.run(
        [str(RECIPES / "huggingface/job.sh"), "me/cats", "--data.prompts", "a red circle"],
        env={
            **os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "DRY_RUN": "1",
            "WHEEL": wheel, "BUCKET": "me/runs", "HF_TOKEN": "hf_x", "NO_COLOR": "1",
        },
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "not submitted" in done.stdout
    for expected in ("generate.py", wheel, "hf://buckets/me/runs:/runs", "me/cats"):
        assert expected in done.stdout


def _help(command):
    return subprocess.run(
        [str(command), "jobs", "uv", "run", "--help"], capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_what_a_job_does(tmp_path, monkeypatch, tiny_checkpoint):
    """Twice, as a second attempt does."""
    pytest.importorskip("datasets")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    with hub() as served:
        for name, value in {
            "HF_TOKEN": served.token, "HF_ENDPOINT": served.address, "HF_HUB_DISABLE_XET": "1",
            "RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        for _ in range(2):
            succeed(run(
                RECIPES / "huggingface/generate.py", "me/cats", "--data.prompts=a red circle", *CPU,
                f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2", cwd=tmp_path,
            ))  # fmt: skip
        assert {*served.files["me/cats"]} == {"README.md", "data/train-00000-of-00001.parquet"}
