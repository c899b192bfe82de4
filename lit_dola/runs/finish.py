"""Finishing a run: merging the logs of all ranks, and counting what is missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lit_dola.data.columns import Line
from lit_dola.data.requests import Failure, Request, RequestKey
from lit_dola.runs.folder import RunFiles
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import RunRecord
from lit_dola.runs.resume import FilesOf


class Outcome(NamedTuple):
    """Counts of the requested results at the end of a run."""

    num_there: int = 0
    """Existing results."""
    num_missing: int = 0
    """Results that neither exist nor were skipped."""
    num_failures: int = 0
    """Lines of ``errors.jsonl``: prompts and results that were skipped."""


def finish_run(
    kind: type[RunRecord],
    folder: Path,
    files_of: FilesOf,
    asked_for: Sequence[Request],
    to_make: Sequence[Request],
) -> Outcome:
    """Merge the logs of all ranks, and count what was skipped and what is missing."""
    made: set[RequestKey] = set()
    failed: set[tuple[int, int]] = set()
    files = RunFiles(folder)  # a folder may have been deleted meanwhile

    def note_made(line: Line) -> Line:
        record = kind.from_line(line)
        if all(files.modified(file) is not None for file in files_of(record) or ()):
            made.add(record.key)
        return line

    def note_failed(line: Line) -> Line:
        failed.add((line["prompt_index"], line["image_index"]))
        return line

    num_failures = RecordLog(folder, Failure).merge(note_failed)
    if not to_make:
        return Outcome(len(asked_for), 0, num_failures)
    RecordLog(folder, kind).merge(note_made)
    keys = [request.key for request in asked_for]
    return Outcome(
        sum(key in made for key in keys),
        sum(key not in made and key not in failed for key in keys),
        num_failures,
    )
