"""Many devices, on the CPU: the same images, each made once, however they are dealt out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from tests.test_cli import CPU, files, one_line, records

MAIN = Path(__file__).parents[1] / "main.py"


@pytest.fixture
def start(tiny_checkpoint, tmp_path):
    """Start ``main.py``, or another script, into a folder."""
    (tmp_path / "prompt.json").write_text(json.dumps([f"a picture of {n} birds" for n in range(5)]))

    def popen(out, *args, launcher=(), script=MAIN, **environment):
        return subprocess.Popen(
            [
                sys.executable, *launcher, str(script), "predict", *CPU, "--model.parallel_size=2",
                f"--model.model_path={tiny_checkpoint}", "--model.images_per_batch=3",
                f"--writer.output_dir={out}", *args,
            ],
            cwd=tmp_path, env={**os.environ, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return popen


@pytest.fixture
def predict(start, tmp_path):
    """The same to its end; gives its files as well."""

    def run(out, *args, **options):
        process = start(out, *args, **options)
        stdout, stderr = process.communicate(timeout=300)
        done = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
        return done, files(tmp_path / out) if (tmp_path / out).is_dir() else {}

    return run


def ranks(count, strategy="ddp"):
    return [f"--trainer.devices={count}", f"--trainer.strategy={strategy}"]


def test_the_same_images_on_any_number_of_ranks(predict, tmp_path):
    done, one = predict("one")
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path / "one")) == 10
    for count in (2, 3):
        done, more = predict(f"on{count}", *ranks(count))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert more == one


def test_fewer_images_than_ranks_and_none_at_all(predict, tmp_path):
    args = [*ranks(2), "--model.parallel_size=1", "--data.prompt_json=one.txt"]
    done, _ = predict("out", *args)
    one_line(done, 1, "one.txt: not readable")  # said once, not by each rank
    (tmp_path / "one.txt").write_text("one cat")
    for _ in range(2):  # the second time all is done
        done, made = predict("out", *args)
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(made) == ["00000_one_cat/img_00.jpg", "metadata.jsonl"]


def test_torchrun(predict):
    _, one = predict("one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done, two = predict("two", *ranks(2), launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert two == one


@pytest.mark.parametrize("launcher", ["srun", "by hand"])
def test_two_nodes(launcher, predict, start, tmp_path):
    """One rank each, as SLURM starts them, or a person on each machine."""
    _, one = predict("one")
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    slurm = {
        "SLURM_NTASKS": "2", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "dola",
        "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "localhost", "SLURM_LOCALID": "0",
    }  # fmt: skip
    nodes = []
    for node in ("0", "1"):
        variables = {"SLURM_PROCID": node, "SLURM_NODEID": node, **slurm}
        if launcher == "by hand":
            variables = {"NODE_RANK": node}
        nodes.append(start("two", *ranks(1), "--trainer.num_nodes=2", **master, **variables))
    for node in nodes:
        _, stderr = node.communicate(timeout=120)
        assert (node.returncode, stderr) == (0, "")
    assert files(tmp_path / "two") == one


SHARDED = """
import sys
from lit_dola.cli import main
from lit_dola.module import LitDoLa

predict_step = LitDoLa.predict_step

def noted(self, batch, batch_idx):
    made = predict_step(self, batch, batch_idx)
    weights = self.janus.language_model.layers.parameters()
    part = [weight.to_local().numel() / weight.numel() for weight in weights]
    print(f"part {max(part)} of {len(part)} weights", file=sys.stderr)
    return made

LitDoLa.predict_step = noted
main()
"""


def test_a_model_in_parts_makes_the_same_images(predict, tmp_path):
    """FSDP: between two steps each rank has half of every layer; all run as many batches."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    five = ["--model.parallel_size=1", "--model.images_per_batch=1"]
    _, one = predict("one", *five)
    strategy = json.dumps({"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"})
    done, two = predict("two", *five, *ranks(2, strategy), script=tmp_path / "sharded.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["part 0.5 of 72 weights"] * 6
    assert two == one
