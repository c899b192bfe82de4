"""Progress of a run in lines, for logs."""

import time
from collections import deque
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from threading import Event, Thread

from lit_dola.messages import rate_of
from lit_dola.registry import record_types
from lit_dola.reports.status import duration, progress_of, remarks
from lit_dola.runs.run_file import RunFile
from lit_dola.runs.status import RankCounter, rank_statuses

_FIRST = 30.0
"""Seconds between lines at first."""
_FIRST_MINUTES = 300.0
"""Seconds for which this holds; also those over which the rate is taken, at least."""

_log = getLogger(__name__)


class ProgressLines:
    """Prints a line now and then from a thread of its own, also while the run waits for something.

    The lines are derived from the logs of all ranks in the folder of the run.

    Args:
        folder: Folder of the run.
        run: The run, whose model is loaded.
        interval: Seconds between two lines, see
            :class:`lit_dola.callbacks.progress.RunProgress`.
    """

    def __init__(self, folder: Path, run: RunFile, interval: float) -> None:
        self._run = run
        self._interval = interval
        self._kind = record_types()[run.log]
        self._counter = RankCounter(folder, self._kind)
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._stopped = Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin, if it has not begun yet."""
        if self._thread is None:
            self._thread = Thread(target=self._print, name="progress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Print no more lines."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _print(self) -> None:
        for seconds in self._pauses():
            if self._stopped.wait(seconds):
                return
            _log.info(self.line())

    def _pauses(self) -> Iterator[float]:
        first = min(_FIRST, self._interval)
        for _ in range(round(_FIRST_MINUTES / first)):
            yield first
        while True:
            yield self._interval

    def line(self) -> str:
        """Return how far the run is now."""
        run = self._run
        counts = self._counter.count(run.token, run.ranks)
        made = sum(done for done, _ in counts)
        now = time.monotonic()
        while len(self._samples) > 1 and now - self._samples[1][0] >= self._window:
            self._samples.popleft()
        since, before = self._samples[0]
        self._samples.append((now, made))
        results = self._kind.results
        parts = [f"{results} {progress_of(run.done_before + made, run.asked_for)}"]
        if made > before:
            rate = (made - before) / (now - since)
            left = (run.asked_for - run.done_before - made) / rate
            parts.append(f"{rate_of(rate, results)} over the last {duration(now - since)}")
            parts.append(f"{duration(left)} left")
        if run.ranks > 1:
            parts.append(f"{run.ranks} ranks, the first on {run.host}")
        else:
            parts.append(run.host)
        parts += remarks(rank_statuses(run, counts))
        return ", ".join(parts)

    @property
    def _window(self) -> float:
        return max(self._interval, _FIRST_MINUTES)
