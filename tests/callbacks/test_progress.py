"""Progress without a terminal."""

import logging
import time

import pytest

from lit_dola.callbacks.progress_lines import ProgressLines
from lit_dola.runs.run_file import RunFile

TOKEN = "0123abcd"


@pytest.fixture
def lines(tmp_path):
    def make(interval=300.0, ranks=2, **about):
        content = {"asked_for": 40, "done_before": 10, "batch_size": 2, "host": "node7", **about}
        run = RunFile(
            "metadata", TOKEN, ranks=ranks, settings={}, began=time.time() - 1000, **content
        )
        return ProgressLines(tmp_path, run, interval)

    return make


def write(folder, rank, count):
    (folder / f"metadata.{rank}.{TOKEN}.jsonl").write_text("{}\n" * count)


def test_a_line_tells_of_all_ranks(lines, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("lit_dola.callbacks.progress_lines.time.monotonic", lambda: clock[0])
    progress = lines()
    write(tmp_path, 0, 5)
    write(tmp_path, 1, 5)
    clock[0] = 5.0
    assert progress.line() == (
        "images 20 of 40 (50 %), 2 images/s over the last 00:05, 00:10 left,"
        " 2 ranks, the first on node7"
    )


def test_the_rate_is_that_of_the_last_minutes(lines, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("lit_dola.callbacks.progress_lines.time.monotonic", lambda: clock[0])
    progress = lines(asked_for=4000)
    for minute in range(1, 31):
        clock[0] = 60.0 * minute
        write(tmp_path, 0, 600 + minute if minute > 10 else 60 * minute)
        line = progress.line()
    assert "60 s/image over the last 05:00" in line


def test_before_the_first_batch(lines):
    assert lines().line().startswith("images 10 of 40 (25 %), 2 ranks, the first on node7")


def test_a_rank_that_writes_nothing_is_named(lines, tmp_path):
    progress = lines()
    write(tmp_path, 0, 15)
    assert "rank 1 has written nothing for 16:" in progress.line()


def test_one_rank_alone_names_its_host(lines, tmp_path):
    write(tmp_path, 0, 3)
    assert lines(ranks=1).line().endswith(", node7")


def test_lines_are_printed_until_they_are_stopped(lines, caplog):
    caplog.set_level(logging.INFO)
    progress = lines(interval=0.01)
    progress.start()
    deadline = time.monotonic() + 30
    while len(caplog.messages) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    progress.stop()
    count = len(caplog.messages)
    assert count >= 3
    time.sleep(0.05)
    assert len(caplog.messages) == count


def test_pauses_are_short_at_first(lines):
    pauses = lines(interval=200.0)._pauses()
    assert [next(pauses) for _ in range(13)] == [30.0] * 10 + [200.0] * 3
    pauses = lines(interval=7.0)._pauses()
    assert next(pauses) == 7.0
