"""How far a run is, told from folders that are made by hand."""

import json
import os
import time

import pytest

from lit_dola.errors import UserError
from lit_dola.reports.status import status_as_json, status_as_text
from lit_dola.runs.claim import Claim
from lit_dola.runs.records import ImageRecord
from lit_dola.runs.run_file import RunFile
from lit_dola.runs.status import RankCounter, read_status, read_statuses

TOKEN = "0123abcd"


@pytest.fixture
def make(tmp_path):
    """Make the folder of a run whose ranks have written so many lines, each so many seconds ago."""

    def run(lines, ago=(0,), began=100, folder=tmp_path, failures=0, merged=0, **about):
        folder.mkdir(exist_ok=True)
        now = time.time()
        content = {"asked_for": 40, "done_before": 0, "batch_size": 2, **about}
        settings = {"alpha": 0.1, "top_k": None, "versions": {"torch": "2"}}
        began = None if began is None else now - began
        RunFile("metadata", TOKEN, ranks=len(lines), settings=settings, began=began,
                **content).write(folder)  # fmt: skip
        for rank, (count, seconds) in enumerate(zip(lines, ago)):
            if count:
                path = folder / f"metadata.{rank}.{TOKEN}.jsonl"
                path.write_text("{}\n" * count)
                os.utime(path, (now - seconds, now - seconds))
        for name, count in (("errors", failures), ("metadata", merged)):
            if count:
                (folder / f"{name}.jsonl").write_text("{}\n" * count)
        return folder

    return run


def test_a_run_that_was_stopped(make):
    status = read_status(make([6, 4], ago=[50, 50], failures=1))
    assert (status.state, status.done, status.asked_for, status.skipped) == ("stopped", 10, 40, 1)
    assert [(rank.done, rank.of) for rank in status.ranks] == [(6, 20), (4, 20)]
    assert status.rate == pytest.approx(10 / 50, rel=0.01)  # the last line was 50 s after the first
    assert status.seconds_left is None


def test_a_run_that_goes_on(make):
    folder = make([6, 4], ago=[0, 20], done_before=10)
    claim = Claim(folder)
    claim.take()
    try:
        status = read_status(folder)
        text = status_as_text(status)
    finally:
        claim.release()
    assert status.state == "running"
    assert (status.done, status.asked_for) == (20, 40)
    assert [(rank.done, rank.of) for rank in status.ranks] == [(6, 15), (4, 15)]
    assert status.seconds_left == pytest.approx(20 / (10 / 100), rel=0.02)
    assert status.holder.process == os.getpid()
    assert f"running, process {os.getpid()} on " in text
    assert "images    20 of 40 (50 %)" in text
    assert "rank 1    4 of 15 (26 %)" in text
    assert not list(folder.glob(".run.json"))


def test_looking_changes_nothing(make):
    folder = make([3])
    (folder / ".run.lock").touch()  # of a run that is dead
    before = sorted(folder.iterdir())
    assert read_status(folder).state == "stopped"
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("missing", "state"), [(0, "finished"), (3, "stopped")], ids=["all", "not all"]
)
def test_a_run_that_has_ended(make, missing, state):
    folder = make(
        [0], ended=time.time(), num_there=40 - missing, num_missing=missing, merged=40 - missing
    )
    status = read_status(folder)
    assert (status.state, status.done, status.ranks) == (state, 40 - missing, [])
    assert status.rate == pytest.approx((40 - missing) / 100, rel=0.01)


def test_a_run_of_a_version_without_run_json(make):
    folder = make([0], merged=7)
    (folder / "run.json").unlink()
    status = read_status(folder)
    assert (status.state, status.done, status.asked_for) == ("stopped", 7, None)
    assert "images    7\n" in status_as_text(status) + "\n"


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"log": 3}', b"\xff", b"null"])
def test_a_damaged_run_json_is_ignored(make, content):
    folder = make([0], merged=7)
    (folder / "run.json").write_bytes(content)
    assert read_status(folder).done == 7


@pytest.mark.parametrize(
    ("lines", "ago", "stalled", "behind"),
    [
        ([10, 10], [0, 0], [], []),
        ([10, 2], [0, 0], [], [1]),
        ([10, 9], [0, 900], [1], []),
        ([10, 0], [0, 0], [1], [1]),  # it has never written
        ([20, 10], [900, 0], [], []),  # it has finished
    ],
    ids=["alike", "behind", "silent", "nothing", "finished"],
)
def test_ranks_that_lag_are_named(make, lines, ago, stalled, behind):
    ranks = read_status(make(lines, ago=ago, began=1000)).ranks
    assert [rank.rank for rank in ranks if rank.stalled] == stalled
    assert [rank.rank for rank in ranks if rank.behind] == behind


def test_no_rank_lags_before_its_first_batch(make):
    ranks = read_status(make([1, 0], ago=[0, 0], began=100)).ranks
    assert not any(rank.stalled or rank.behind for rank in ranks)


def test_slow_batches_are_not_taken_for_silence(make):
    # A batch of 2 takes 500 s, so that 600 s without one are nothing unusual.
    ranks = read_status(make([4, 4], ago=[0, 600], began=1000)).ranks
    assert not any(rank.stalled for rank in ranks)


def test_json_has_everything(make):
    found = json.loads(status_as_json(read_status(make([6, 4], ago=[0, 0]))))
    assert found["done"] == 10
    assert found["settings"]["alpha"] == 0.1
    assert [rank["of"] for rank in found["ranks"]] == [20, 20]
    assert found.keys() >= {"state", "asked_for", "skipped", "rate", "seconds_left", "claims"}


def test_text_leaves_out_what_says_nothing(make):
    text = status_as_text(read_status(make([6])))
    assert "alpha 0.1" in text
    assert "top_k" not in text
    assert "rank 0" not in text  # the only one


def test_an_evaluation_is_its_variants(make, tmp_path):
    for name in ("b", "a"):
        make([1], folder=tmp_path / name)
    (tmp_path / "other").mkdir()
    assert [status.folder.name for status in read_statuses([str(tmp_path)])] == ["a", "b"]


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="no run; expected the folder of a run"):
        list(read_statuses([str(tmp_path)]))


def test_counting_reads_only_what_is_new(tmp_path):
    path = tmp_path / f"metadata.0.{TOKEN}.jsonl"
    counter = RankCounter(tmp_path, ImageRecord)
    assert counter.count(TOKEN, 1) == [(0, None)]
    path.write_text("{}\n{}\n{")  # the third is being written
    assert counter.count(TOKEN, 1)[0][0] == 2
    path.write_text("xx\nxx\n{}\n")  # what was read is not read again
    assert counter.count(TOKEN, 1)[0][0] == 3
