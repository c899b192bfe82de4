"""Many devices, on the CPU: the same images, each made once, however they are dealt out."""

import json
import os

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from lit_dola import LitDoLa
from tests.support import forked
from tests.support.commands import CPU, MAIN, ddp, files, one_line, records, run


@pytest.fixture
def arguments(tiny_checkpoint, tmp_path):
    """Arguments of a run into a folder."""
    (tmp_path / "prompt.json").write_text(json.dumps([f"a picture of {n} birds" for n in range(5)]))

    def into(out, *args):
        return [
            "predict", *CPU, "--model.parallel_size=2", "--model.images_per_batch=3",
            f"--model.model_path={tiny_checkpoint}", f"--writer.output_dir={tmp_path / out}",
            f"--data.prompt_json={tmp_path / 'prompt.json'}", *args,
        ]  # fmt: skip

    return into


@pytest.fixture
def one(arguments, tmp_path):
    """Files of one rank, for the same arguments."""

    def of(*args):
        done = forked.run(tmp_path, arguments("one/out", *args))
        assert (done.returncode, done.stderr) == (0, "")
        return files(tmp_path / "one/out")

    return of


@pytest.fixture
def srun(arguments, tmp_path):
    """Run as many ranks as SLURM would, on so many nodes; gives what each of them says."""

    def run(count, *args, nodes=1, breaking=None):
        per_node = count // nodes
        job = {
            "SLURM_NTASKS": str(count), "SLURM_NTASKS_PER_NODE": str(per_node),
            "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "dola", "SLURM_NODELIST": "localhost",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()),
        }  # fmt: skip
        args = arguments("out", *ddp(per_node), f"--trainer.num_nodes={nodes}", *args)
        ranks = []
        for rank in range(count):
            folder = tmp_path / f"rank{rank}"
            folder.mkdir(exist_ok=True)
            place = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank % per_node}
            place = {**place, "SLURM_NODEID": rank // per_node}
            variables = {**job, **{name: str(value) for name, value in place.items()}}
            ranks.append((forked.start(folder, args, breaking, **variables), folder))
        return [forked.finish(*rank) for rank in ranks]

    return run


def test_two_ranks_that_lightning_starts(arguments, one, tmp_path):
    done = run(MAIN, *arguments("out", *ddp(2)), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(records(tmp_path / "out")) == 10
    assert files(tmp_path / "out") == one()


def test_two_ranks_that_torchrun_starts(arguments, one, tmp_path):
    """Grids and inspections too, which both ranks have a share of."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    more = ["--writer.grid=true", "--model.inspect=[[0,1],[4,0]]"]
    done = run(*launcher, MAIN, *arguments("out", *ddp(2), *more), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = files(tmp_path / "out")
    assert made == one(*more)
    assert len([name for name in made if name.endswith("grid.jpg")]) == 5
    assert len([name for name in made if ".inspect." in name]) == 4


@pytest.mark.parametrize(("count", "nodes"), [(2, 2), (3, 1), (4, 2)])
def test_ranks_that_slurm_starts(count, nodes, srun, one, tmp_path):
    for done in srun(count, nodes=nodes):
        assert (done.returncode, done.stderr) == (0, "")
    assert files(tmp_path / "out") == one()


def test_fewer_images_than_ranks_and_none_at_all(srun, tmp_path):
    args = ["--model.parallel_size=1", f"--data.prompt_json={tmp_path / 'one.txt'}"]
    first, second = srun(2, *args)
    one_line(first, 1, "one.txt: not readable")
    assert (second.returncode, second.stderr) == (1, "")  # it is said once, not by each rank
    (tmp_path / "one.txt").write_text("one cat")
    for _ in range(2):  # the second time all is done
        for done in srun(3, *args):
            assert (done.returncode, done.stderr) == (0, "")
        assert sorted(files(tmp_path / "out")) == [
            "00000_one_cat/img_00.jpg", "index.html", "metadata.jsonl",
        ]  # fmt: skip


def note_parts():
    """Say at every batch how much of each layer this rank holds, between two of its steps."""
    predict_step = LitDoLa.predict_step

    def noted(self, batch, batch_idx):
        made = predict_step(self, batch, batch_idx)
        weights = self.janus.language_model.layers.parameters()
        part = [weight.to_local().numel() / weight.numel() for weight in weights]
        os.write(2, f"{max(part)} of {len(part)} weights\n".encode())
        return made

    LitDoLa.predict_step = noted


def test_a_model_in_parts_makes_the_same_images(srun, one, tmp_path):
    """FSDP on two ranks; five images, and both run as many batches."""
    args = ["--model.parallel_size=1", "--model.images_per_batch=1"]
    strategy = json.dumps({"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"})
    for done in srun(2, *args, f"--trainer.strategy={strategy}", breaking=note_parts):
        assert done.returncode == 0, done.stderr
        assert done.stderr == "0.5 of 72 weights\n" * 3
    assert files(tmp_path / "out") == one(*args)
