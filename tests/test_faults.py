"""Nothing is lost: whatever ends a run, at any point, the same command makes the rest.

Each test breaks a run, checks that no incomplete file has its final name, runs it again and
compares every file with those of an undisturbed run.
"""

import errno
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

import pytest

from lit_dola.callbacks.signals import requeue_slurm_job
from lit_dola.janus.model import TransformersJanus
from lit_dola.runs import files as run_files
from lit_dola.runs import resume
from lit_dola.runs.record_log import RecordLog
from tests.support.commands import MAIN, files, messages
from tests.support.forked import finish, run, start

pytestmark = pytest.mark.slow


@pytest.fixture
def command(tiny_checkpoint, tmp_path):
    """Arguments of a run into ``out``."""

    def of(prompts, images, *more):
        texts = ["a cat" + " and a dog" * (n % 3) + f" {n}" for n in range(prompts)]
        (tmp_path / "prompt.json").write_text(json.dumps(texts))
        return [
            "predict", "--trainer.accelerator=cpu", "--trainer.devices=1",
            f"--model.model_path={tiny_checkpoint}", f"--model.parallel_size={images}",
            "--model.images_per_batch=4", "--writer.output_dir=out", *more,
        ]  # fmt: skip

    return of


@pytest.fixture(scope="module")
def made_before():
    return {}


@pytest.fixture
def undisturbed(made_before, tmp_path):
    """Files of the same run, undisturbed."""

    def of(args):
        key = (*args, (tmp_path / "prompt.json").read_text())
        if key not in made_before:
            alone = f"alone{len(made_before)}/out"
            assert run(tmp_path, [*args, f"--writer.output_dir={alone}"]).returncode == 0
            made_before[key] = comparable(tmp_path / alone)
        return made_before[key]

    return of


def comparable(folder):
    """Files of a run, without the numbers of passes, which the machine's speed decides."""
    found = files(folder)
    for name, content in found.items():
        if b" passes per image" in content:  # the gallery
            found[name] = content[-len(b"</html>") :]
        elif name.endswith(".jsonl"):
            found[name] = re.sub(rb', "forwards": \d+', b"", content)
    return found


def check_whole(folder, expected):
    """Every file under its final name is complete, and every record has its file."""
    found = comparable(folder) if folder.is_dir() else {}
    for name, content in found.items():
        if name == "index.html":  # of the images that existed then
            assert content.endswith(b"</html>")
        elif not name.endswith((".tmp", ".jsonl")) and not name.startswith(".run"):
            assert content == expected[name], name
    lines = [line for name in found if name.endswith(".jsonl") for line in found[name].splitlines()]
    assert all(json.loads(line)["file_name"] in found for line in lines)
    return found


@pytest.mark.parametrize(
    ("seed", "more"),
    [(0, []), (1, []), (2, []), (3, ["--model.images_per_batch=1", "--model.speculative=4"])],
    ids=["0", "1", "2", "refilled rows"],
)
def test_killed_at_random_moments(seed, more, command, undisturbed, tmp_path):
    """Six kills in a row, then an undisturbed run: 24 kills altogether."""
    args = command(4, 4, "--writer.save_tokens=true", *more)
    expected = undisturbed(args)
    before = time.monotonic()
    assert run(tmp_path, args).returncode == 0
    longest = time.monotonic() - before
    moments = random.Random(seed)
    shutil.rmtree(tmp_path / "out")
    images = killed = 0
    while killed < 6:
        process = start(tmp_path, args)
        process.join(moments.uniform(0.3, 0.95) * longest)
        process.kill()
        process.join()
        found = check_whole(tmp_path / "out", expected)
        now = sum(name.endswith(".jpg") for name in found)
        assert now >= images  # nothing is lost
        images = now
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:  # it finished first: start over
            assert found == expected
            shutil.rmtree(tmp_path / "out")
            images = 0
    assert run(tmp_path, args).returncode == 0
    assert comparable(tmp_path / "out") == expected


def break_call(number, how):
    """Make the nth call that changes the run's folder fail, or end the process there."""
    calls = itertools.count(1)
    open_path = Path.open

    def counted(call):
        def wrapped(*args, **kwargs):
            reads = call is open_path and args[1:] != ("xb",)
            if not reads and next(calls) == number:
                if how == "die":
                    os._exit(99)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out")
            return call(*args, **kwargs)

        return wrapped

    # Other modules use os, too; their calls must not be counted.
    run_files.os = types.ModuleType("os")
    vars(run_files.os).update(vars(os), write=counted(os.write), fsync=counted(os.fsync))
    for call in (Path.mkdir, Path.open, Path.replace, Path.unlink):
        setattr(Path, call.__name__, counted(call))


CALLS = 35
"""Calls that change the folder in a run of two images."""


@pytest.mark.parametrize("how", ["die", "no space"])
@pytest.mark.parametrize("number", range(1, CALLS + 2))
def test_every_call_that_writes_fails_in_turn(number, how, command, undisturbed, tmp_path):
    args = command(2, 1)
    expected = undisturbed(args)
    code = run(tmp_path, args, break_call, number, how).returncode
    assert code == ({"die": 99, "no space": 1}[how] if number <= CALLS else 0)
    check_whole(tmp_path / "out", expected)
    assert run(tmp_path, args).returncode == 0
    assert files(tmp_path / "out") == expected


def limit_files(size):
    """Limit the size of files, so that a write fails in the middle."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_the_disk_is_full_in_the_middle_of_a_file(part, command, undisturbed, tmp_path):
    args = command(2, 2)
    expected = undisturbed(args)
    smallest = min(len(content) for name, content in expected.items() if name.endswith(".jpg"))
    assert run(tmp_path, args, limit_files, int(part * smallest)).returncode == 1
    check_whole(tmp_path / "out", expected)
    assert run(tmp_path, args).returncode == 0
    assert files(tmp_path / "out") == expected


@pytest.mark.parametrize("pages", [2, 8, 15])
def test_a_small_file_system_is_full(pages, command, undisturbed, tmp_path):
    """On a real file system; the rest is made once there is room."""
    args = command(4, 2)
    expected = undisturbed(args)
    (tmp_path / "out").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={4096 * pages}", "tmpfs", str(tmp_path / "out")]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not allowed here")
    try:
        assert run(tmp_path, args).returncode == 1
        check_whole(tmp_path / "out", expected)
        subprocess.run([*mount[:4], "remount,size=10m", *mount[5:]], check=True)
        assert run(tmp_path, args).returncode == 0
        assert files(tmp_path / "out") == expected
    finally:
        subprocess.run(["umount", str(tmp_path / "out")], check=True)


def hold_until(go):
    """Let a run merge its records only once a file exists."""
    merge = RecordLog.merge

    def held(self, *args, **kwargs):
        while not go.exists():
            time.sleep(0.01)
        return merge(self, *args, **kwargs)

    RecordLog.merge = held


def test_two_runs_at_once_in_one_folder(command, undisturbed, tmp_path):
    """The second is refused, also one of equal settings, and learns who holds the folder."""
    args = command(2, 2)
    expected = undisturbed(args)
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "prompt.json", tmp_path / "second")
    first = start(tmp_path, args, hold_until, tmp_path / "go")
    while not (tmp_path / "out" / ".run.json").exists():
        assert first.is_alive()
        time.sleep(0.01)
    second = run(tmp_path / "second", [*args, "--writer.output_dir=../out"])
    assert second.returncode == 1
    found = re.search(r"process (\d+) on \S+ has been writing to .* since \d{4}-", second.stderr)
    assert int(found[1]) == first.pid
    (tmp_path / "go").touch()
    assert finish(first, tmp_path).returncode == 0
    assert files(tmp_path / "out") == expected
    assert run(tmp_path, args).returncode == 0


def merge_slowly(begin_at):
    """Start at a moment, and let others act while this run reads and merges the records."""
    merge, keep_complete = RecordLog.merge, resume._keep_complete

    def slow_merge(self, *args, **kwargs):
        time.sleep(0.02)
        return merge(self, *args, **kwargs)

    def slowly_keep_complete(*args):
        found = keep_complete(*args)
        time.sleep(0.02)
        return found

    RecordLog.merge = slow_merge
    resume._keep_complete = slowly_keep_complete
    time.sleep(max(0, begin_at - time.monotonic()))


@pytest.mark.parametrize(
    ("on_mismatch", "repetition"),
    [
        *(("error", repetition) for repetition in range(0, 8, 2)),
        *itertools.product(["new_folder", "overwrite"], range(0, 20, 6)),
    ],
)
def test_runs_of_different_settings_started_at_once(
    on_mismatch, repetition, command, undisturbed, tmp_path
):
    """Whoever comes first, a folder holds the images of one of them, and exit 0 means all."""
    args = command(1, 2, f"--writer.on_mismatch={on_mismatch}")
    variants = [[*args, f"--model.alpha={alpha}"] for alpha in (0.1, 0.9)]
    expected = [{**undisturbed(variant)} for variant in variants]
    begin_at = time.monotonic() + 0.1
    both = []
    for number, variant in enumerate(variants):
        # Each has a working folder of its own, for what it prints.
        (tmp_path / f"{number}").mkdir()
        shutil.copy(tmp_path / "prompt.json", tmp_path / f"{number}")
        there = [*variant, "--writer.output_dir=../out"]
        delay = repetition * 0.01 * number
        both.append(start(tmp_path / f"{number}", there, merge_slowly, begin_at + delay))
    done = [finish(process, tmp_path / f"{number}") for number, process in enumerate(both)]
    codes = [each.returncode for each in done]
    made = [files(path) for path in sorted(tmp_path.glob("out*"))]
    if on_mismatch == "new_folder":
        for folder in made + expected:
            del folder["index.html"]  # it names its folder
        assert codes == [0, 0]
        assert made in (expected, expected[::-1])
        return
    assert codes.count(0) == 1 or on_mismatch == "overwrite"
    assert made[0] in [files for files, code in zip(expected, codes) if code == 0]
    for each in done:
        if each.returncode:
            assert each.returncode == 1
            assert re.search("has been writing to|holds results of another run", each.stderr)


TWO_RANKS = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.fixture
def begin(tmp_path):
    """Start a run and wait for some images; returns its process id and a function that waits."""
    groups = []

    def wait_for_images(ended, how_many=5):
        while len(list((tmp_path / "out").glob("*/*.jpg"))) < how_many:
            assert not ended(), [path.read_text() for path in tmp_path.glob(".std*")]
            time.sleep(0.02)

    def one_rank(args, **environment):
        process = start(tmp_path, args, **environment)
        wait_for_images(lambda: not process.is_alive())
        return process.pid, lambda: finish(process, tmp_path)

    def two_ranks(args, **environment):
        """Run ``main.py`` itself, which Lightning starts again for the second rank."""
        with (tmp_path / ".stdout").open("w") as stdout, (tmp_path / ".stderr").open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(MAIN), *args, *TWO_RANKS],
                cwd=tmp_path, env={**os.environ, **environment}, stdout=stdout, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
        groups.append(process.pid)
        wait_for_images(lambda: process.poll() is not None)
        said = tmp_path / ".stderr"
        return process.pid, lambda: types.SimpleNamespace(
            returncode=process.wait(60), stderr=said.read_text()
        )

    yield {1: one_rank, 2: two_ranks}
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def further_rank(pid):
    """The process id of the rank that Lightning started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (child,) = [int(child) for child in children]
    return child


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.distributed
def test_one_of_two_ranks_is_killed(rank, command, undisturbed, begin, tmp_path):
    """The other one ends, too; any number of ranks can then make the rest."""
    args = command(10, 4, "--model.images_per_batch=2")
    expected = undisturbed(args)
    pid, end = begin[2](args)
    child = further_rank(pid)
    os.kill([pid, child][rank], signal.SIGKILL)
    done = end()
    assert done.returncode != 0
    if rank == 1:
        noticed = "another rank ended early|rank 1 was ended by SIGKILL, and the others with it"
        kept = "everything written so far is kept, and the same command continues from there"
        assert re.search(f"^(error: )?({noticed}); {kept}\n$", messages(done.stderr))
    while Path(f"/proc/{child}").exists():
        time.sleep(0.1)
    found = check_whole(tmp_path / "out", expected)
    assert 5 <= sum(name.endswith(".jpg") for name in found) < 40
    assert run(tmp_path, args).returncode == 0
    assert files(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("signum", "code", "ranks"),
    [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1), (signal.SIGTERM, 143, 2)],
)
def test_a_signal_ends_the_run_in_order(signum, code, ranks, command, undisturbed, begin, tmp_path):
    """Generated images are written with their records; no incomplete file is left."""
    args = command(10, 4, "--model.images_per_batch=2")
    expected = undisturbed(args)
    pid, end = begin[ranks](args)
    for _ in range(20):  # an impatient user
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
        time.sleep(0.01)
    done = end()
    name = signal.Signals(signum).name
    assert done.returncode == code
    assert messages(done.stderr) == f"stopped by {name}; the same command continues from there\n"
    found = check_whole(tmp_path / "out", expected)
    images = {name for name in found if name.endswith(".jpg")}
    lines = [line for name in found if name.endswith(".jsonl") for line in found[name].splitlines()]
    assert {json.loads(line)["file_name"] for line in lines} == images
    assert not [name for name in found if name.endswith(".tmp")]
    assert 5 <= len(images) < 40
    assert run(tmp_path, args).returncode == 0
    assert files(tmp_path / "out") == expected


def note_decoded_images_and_send(signum):
    decode = TransformersJanus.decode_image_tokens

    def noted(janus, tokens):
        with open("decoded", "a") as file:
            print("image", file=file)
        if tokens.device.type != "meta" and signum is not None:
            os.kill(os.getpid(), signum)
        return decode(janus, tokens)

    TransformersJanus.decode_image_tokens = noted


def test_a_signal_during_vq_decoding_waits_for_one_image(command, tmp_path):
    """On a CPU an image may take many seconds."""
    decoded = []
    for signum in None, signal.SIGTERM:
        done = run(tmp_path, command(1, 4), note_decoded_images_and_send, signum)
        decoded.append((tmp_path / "decoded").read_text().count("image"))
        (tmp_path / "decoded").unlink()
        shutil.rmtree(tmp_path / "out")
    assert done.returncode == 143
    assert decoded[0] - decoded[1] == 3  # of four


@pytest.fixture
def scontrol(tmp_path):
    """A stand-in that records its arguments."""
    path = tmp_path / "bin" / "scontrol"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    path.chmod(0o755)
    return path


def test_a_task_of_an_array_of_jobs_is_queued_by_itself(scontrol, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    job = {"JOB_ID": "4703", "ARRAY_JOB_ID": "4700", "ARRAY_TASK_ID": "3"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    requeue_slurm_job()
    assert (tmp_path / "requeued").read_text() == "requeue 4700_3\n"


def test_slurm_starts_the_job_again(command, undisturbed, begin, scontrol, tmp_path):
    """Its signal ends the run cleanly, without a checkpoint, and the job is queued again."""
    args = command(10, 4, "--model.images_per_batch=2")
    expected = undisturbed(args)
    slurm = {
        "SLURM_NTASKS": "1", "SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0", "SLURM_JOB_NAME": "dola", "SLURM_NODELIST": "localhost",
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    pid, end = begin[1](args, **slurm)
    os.kill(pid, signal.SIGUSR1)
    assert end().returncode == 128 + signal.SIGUSR1
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    check_whole(tmp_path / "out", expected)
    assert not list(tmp_path.glob("**/*.ckpt"))
    assert run(tmp_path, args).returncode == 0
    assert files(tmp_path / "out") == expected
