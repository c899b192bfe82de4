"""Many devices, on the CPU: the same images, each made once, whatever the number of ranks."""

import json
import os
from pathlib import Path

import pytest
import torch

from lit_dola import LitDoLa
from tests.support import forked
from tests.support.commands import CPU, MAIN, ddp, files, messages, one_line, records, run
from tests.support.questions import write_questions
from tests.support.siglips import make_siglip, write_items

pytestmark = pytest.mark.distributed


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
    """The files that one rank writes with the same arguments."""

    def of(*args):
        done = forked.run(tmp_path, arguments("one/out", *args))
        assert (done.returncode, messages(done.stderr)) == (0, "")
        return files(tmp_path / "one/out")

    return of


@pytest.fixture
def srun(arguments, tmp_path):
    """Run as many ranks as SLURM would, on so many nodes; returns what each of them printed."""

    def run(count, *args, nodes=1, breaking=None):
        more = [*ddp(count // nodes), f"--trainer.num_nodes={nodes}"]
        return forked.run_ranks(tmp_path, count, arguments("out", *more, *args), nodes, breaking)

    return run


def tell_when_left():
    leave = torch.distributed.destroy_process_group

    def told(*group):
        leave(*group)
        if not group:  # the group of all ranks
            Path("left").touch()

    torch.distributed.destroy_process_group = told


def test_ranks_leave_the_group_in_order(srun, tmp_path):
    """Otherwise gloo's threads outlive the interpreter, which aborts on a busy machine."""
    for done in srun(2, breaking=tell_when_left):
        assert done.returncode == 0, done.stderr
    assert all((tmp_path / f"rank{rank}" / "left").exists() for rank in range(2))


def test_two_ranks_that_lightning_starts(arguments, one, tmp_path):
    done = run(MAIN, *arguments("out", *ddp(2)), cwd=tmp_path)
    assert (done.returncode, done.stdout, messages(done.stderr)) == (0, "", "")
    assert len(records(tmp_path / "out")) == 10
    assert files(tmp_path / "out") == one()


def test_two_ranks_that_torchrun_starts(arguments, one, tmp_path):
    """Including grids and inspections, which both ranks share."""
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
        assert (done.returncode, messages(done.stderr)) == (0, "")
    assert files(tmp_path / "out") == one()


def test_fewer_images_than_ranks_and_none_at_all(srun, tmp_path):
    args = ["--model.parallel_size=1", f"--data.prompt_json={tmp_path / 'one.txt'}"]
    first, second = srun(2, *args)
    one_line(first, 1, "one.txt: not readable")
    assert (second.returncode, second.stderr) == (1, "")  # reported once, not by every rank
    (tmp_path / "one.txt").write_text("one cat")
    for _ in range(2):  # the second time everything is done
        for done in srun(3, *args):
            assert (done.returncode, messages(done.stderr)) == (0, "")
        assert sorted(files(tmp_path / "out")) == [
            "00000_one_cat/img_00.jpg", "index.html", "metadata.jsonl",
        ]  # fmt: skip


def note_parts():
    """Print, at every batch, how much of each layer this rank holds between two steps."""
    predict_step = LitDoLa.predict_step

    def noted(self, batch, batch_idx):
        made = predict_step(self, batch, batch_idx)
        weights = self.janus.language_model.layers.parameters()
        part = [weight.to_local().numel() / weight.numel() for weight in weights]
        os.write(2, f"{max(part)} of {len(part)} weights\n".encode())
        return made

    LitDoLa.predict_step = noted


def test_a_model_in_parts_makes_the_same_images(srun, one, tmp_path):
    """FSDP on two ranks: five images, and both ranks run the same number of batches."""
    args = ["--model.parallel_size=1", "--model.images_per_batch=1"]
    for done in srun(2, *args, "--trainer.strategy=fsdp2", breaking=note_parts):
        assert done.returncode == 0, done.stderr
        assert messages(done.stderr) == "0.5 of 72 weights\n" * 3
    assert files(tmp_path / "out") == one(*args)


@pytest.fixture
def questions(tiny_checkpoint, tmp_path):
    """Arguments of a run of ``answer`` into a folder."""
    write_questions(tmp_path)

    def into(out, *args):
        return [
            "answer", *CPU, "--model.questions_per_batch=2", "--model.max_new_tokens=6",
            f"--model.model_path={tiny_checkpoint}", f"--writer.output_dir={tmp_path / out}",
            f"--data.question_json={tmp_path / 'questions.jsonl'}", *args,
        ]  # fmt: skip

    return into


@pytest.mark.parametrize("count", [2, 3])
def test_answers_of_several_ranks_are_those_of_one(questions, tmp_path, count):
    done = forked.run(tmp_path, questions("one"))
    assert (done.returncode, messages(done.stderr)) == (0, "")
    for done in forked.run_ranks(tmp_path, count, questions("out", *ddp(count)), 1, None):
        assert done.returncode == 0, done.stderr
    one, out = ((tmp_path / name / "answers.jsonl").read_bytes() for name in ("one", "out"))
    assert out == one
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".run.lock", "answers.jsonl", "index.html", "run.json"
    ]  # fmt: skip


def test_rankings_of_two_ranks_are_those_of_one(tmp_path):
    make_siglip(tmp_path / "siglip")
    write_items(tmp_path)

    def arguments(out, *args):
        return [
            "rank", *CPU, f"--model.model_path={tmp_path / 'siglip'}", "--data.items_per_batch=1",
            f"--writer.output_dir={tmp_path / out}",
            f"--data.item_json={tmp_path / 'items.jsonl'}", *args,
        ]  # fmt: skip

    done = forked.run(tmp_path, arguments("one"))
    assert (done.returncode, messages(done.stderr)) == (0, "")
    for done in forked.run_ranks(tmp_path, 2, arguments("out", *ddp(2)), 1, None):
        assert done.returncode == 0, done.stderr
    one, out = ((tmp_path / name / "ranks.jsonl").read_bytes() for name in ("one", "out"))
    assert out == one
