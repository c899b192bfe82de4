"""Status of a run, read from its folder without changing it."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high
from typing import Literal, cast

from lit_dola.data.requests import Failure, share
from lit_dola.errors import UserError
from lit_dola.registry import record_types
from lit_dola.runs.claim import Holder, holder_of
from lit_dola.runs.record_log import RecordLog, count_lines
from lit_dola.runs.records import RunRecord
from lit_dola.runs.run_file import RunFile

_SILENCE = 120.0
"""Seconds for which any rank may write nothing."""
_GAPS = 4
"""Usual gaps between two batches for which a rank may write nothing."""


State = Literal["running", "stopped", "finished"]


@dataclass(frozen=True)
class RankStatus:
    """Progress of one rank."""

    rank: int
    done: int
    of: int
    """Results assigned to it."""
    idle: float
    """Seconds since it last wrote a result."""
    stalled: bool
    """Set if it is unfinished and idle for unusually long."""
    behind: bool
    """Set if it has done less than half as much as the others."""


@dataclass(frozen=True)
class RunStatus:
    """Status of a run."""

    folder: Path
    state: State
    results: str
    """Plural noun of its results, e.g. ``images``."""
    done: int
    """Existing results."""
    asked_for: int | None
    """Requested results; None without ``run.json``."""
    skipped: int
    ranks: Sequence[RankStatus] = ()
    """While it runs, and after it was stopped."""
    rate: float | None = None
    """Results per second since the model was loaded."""
    seconds_left: float | None = None
    holder: Holder | None = None
    """The run that is writing to the folder."""
    run: RunFile | None = None
    """Content of ``run.json``."""


class RankCounter:
    """Counts what the ranks of a run have written, reading only what is new."""

    def __init__(self, folder: Path, kind: type[RunRecord]) -> None:
        self._log = RecordLog(folder, kind)
        self._read: dict[Path, tuple[int, int]] = {}

    def count(self, token: str, ranks: int) -> list[tuple[int, float | None]]:
        """Return, by rank, the number of its results, and when it wrote the last one."""
        return [self._count(self._log.of_rank(rank, token)) for rank in range(ranks)]

    def _count(self, path: Path) -> tuple[int, float | None]:
        lines, place = self._read.get(path, (0, 0))
        try:
            more, place = count_lines(path, place)
            written = path.stat().st_mtime
        except FileNotFoundError:
            return lines, None
        self._read[path] = lines + more, place
        return lines + more, written


def rank_statuses(run: RunFile, counts: Iterable[tuple[int, float | None]]) -> list[RankStatus]:
    """Return how far each rank is.

    Args:
        run: The run.
        counts: What its ranks have written, see :meth:`RankCounter.count`.
    """
    counts, now = [*counts], time.time()
    began = run.began or now
    to_make = run.asked_for - run.done_before
    shares = [len(share(to_make, run.ranks, rank)) for rank in range(run.ranks)]
    usual = median_high(done for done, _ in counts)
    gap = (run.batch_size or 1) * max(now - began, 0.0) / max(usual, 1)
    statuses = []
    for rank, ((done, written), of) in enumerate(zip(counts, shares)):
        idle = max(now - (written or began), 0.0)
        working = done < of
        statuses.append(
            RankStatus(
                rank,
                done,
                of,
                idle,
                stalled=working and idle > max(_SILENCE, _GAPS * gap),
                behind=working and done < usual / 2 and usual >= 2 * (run.batch_size or 1),
            )
        )
    return statuses


def read_statuses(folders: Iterable[str]) -> Iterator[RunStatus]:
    """Yield how far the runs of some folders are; of an evaluation, those of its variants."""
    for name in folders:
        folder = Path(name)
        try:
            within = sorted(path for path in folder.iterdir() if path.is_dir())
        except OSError as error:
            raise UserError(f"{error.strerror}", "the folder of a run", at=folder) from error
        runs = [path for path in (folder, *within) if _kind_of(path)]
        if not runs:
            raise UserError("no run", "the folder of a run or an evaluation", at=folder)
        yield from map(read_status, runs if folder not in runs else [folder])


def read_status(folder: Path) -> RunStatus:
    """Return how far the run of a folder is."""
    run, kind = RunFile.read(folder), _kind_of(folder)
    assert kind is not None
    holder = holder_of(folder)
    skipped = RecordLog(folder, Failure).count()
    state: State = "running" if holder else "stopped"
    if run is None:
        done = RecordLog(folder, kind).count()
        return RunStatus(folder, state, kind.results, done, None, skipped, holder=holder)
    counts = RankCounter(folder, kind).count(run.token, run.ranks)
    new = sum(done for done, _ in counts)
    last = max((when for _, when in counts if when is not None), default=None)
    ranks = rank_statuses(run, counts)
    if run.ended is not None and not holder:
        ranks, last = [], run.ended
        new = (run.num_there or 0) - run.done_before
        if not run.num_missing:
            state = "finished"
    seconds = last - run.began if last and run.began else 0.0
    rate = new / seconds if seconds > 0 and new > 0 else None
    left = run.asked_for - run.done_before - new
    return RunStatus(
        folder,
        state,
        kind.results,
        min(run.done_before + new, run.asked_for),
        run.asked_for,
        skipped,
        ranks,
        rate,
        left / rate if rate and state == "running" else None,
        holder,
        run,
    )


def _kind_of(folder: Path) -> type[RunRecord] | None:
    """Return the record type of a folder's results; None if it holds no run."""
    run, known = RunFile.read(folder), record_types()
    if run is not None and run.log in known:
        return cast(type[RunRecord], known[run.log])
    with suppress(OSError):
        for kind in known.values():
            if RecordLog(folder, kind).exists():
                return cast(type[RunRecord], kind)
    return None
