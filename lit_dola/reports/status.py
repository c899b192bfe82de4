"""Status of a run, as text and as JSON."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from lit_dola.messages import rate_of
from lit_dola.runs.status import RankStatus, RunStatus

duration = tqdm.format_interval
"""Returns seconds as ``MM:SS`` or ``H:MM:SS``."""


def progress_of(done: int, asked_for: int) -> str:
    """Return ``120 of 480 (25 %)``."""
    percent = 100 * done // asked_for if asked_for else 100
    return f"{done:,} of {asked_for:,} ({percent} %)"


def remarks(ranks: Iterable[RankStatus]) -> Iterator[str]:
    """Yield what is unusual about ranks, if anything."""
    for rank in ranks:
        if rank.stalled:
            yield f"rank {rank.rank} has written nothing for {duration(rank.idle)}"
        elif rank.behind:
            yield f"rank {rank.rank} is behind: {progress_of(rank.done, rank.of)}"


def status_as_text(status: RunStatus) -> str:
    """Return how far a run is, in a few lines."""
    holder = status.holder
    who = f", process {holder.process} on {holder.host}" if holder else ""
    lines = [f"{status.folder}: {status.state}{who}", *_rows(status)]
    return "\n".join(lines)


def _rows(status: RunStatus) -> Iterator[str]:
    done = f"{status.done:,}"
    if status.asked_for is not None:
        done = progress_of(status.done, status.asked_for)
    skipped = f", {status.skipped:,} skipped, see errors.jsonl" if status.skipped else ""
    yield f"  {status.results:<9} {done}{skipped}"
    if status.rate:
        left = status.seconds_left
        more = f", {duration(left)} left" if left is not None else ""
        yield f"  {'rate':<9} {rate_of(status.rate, status.results)}{more}"
    if status.state == "running" and status.run and not status.run.began:
        yield "  the model is being loaded"
    if len(status.ranks) > 1:
        for rank in status.ranks:
            silent = f", nothing for {duration(rank.idle)}" if rank.stalled else ""
            behind = ", behind the others" if rank.behind and not rank.stalled else ""
            name = f"rank {rank.rank}"
            yield f"  {name:<9} {progress_of(rank.done, rank.of)}{silent}{behind}"
    if status.run:
        for name in ("began", "ended"):
            if when := getattr(status.run, name):
                yield f"  {name:<9} {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))}"
        shown = ", ".join(f"{name} {json.dumps(value)}" for name, value in _settings(status))
        yield f"  settings  {shown}"


def _settings(status: RunStatus) -> Iterator[tuple[str, Any]]:
    assert status.run is not None
    settings = status.run.settings.items()
    return ((name, value) for name, value in settings if value is not None and name != "versions")


def status_as_json(status: RunStatus) -> str:
    """Return how far a run is, as one line of JSON."""
    run = asdict(status.run) if status.run else {}
    return json.dumps(
        {
            "folder": str(status.folder),
            "state": status.state,
            "results": status.results,
            "done": status.done,
            "asked_for": status.asked_for,
            "skipped": status.skipped,
            "rate": status.rate,
            "seconds_left": status.seconds_left,
            "ranks": [asdict(rank) for rank in status.ranks],
            "claims": [status.holder._asdict()] if status.holder else [],
            **{name: run.get(name) for name in ("began", "ended", "batch_size", "settings")},
        },
        ensure_ascii=False,
    )
