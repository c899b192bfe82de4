"""Finishing a run: one log of what all ranks have made, and what is missing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_dola.data.requests import ImageKey, Request
from lit_dola.runs.claim import Claim, alone_in
from lit_dola.runs.folder import RunFiles
from lit_dola.runs.record_log import Record, RecordLog
from lit_dola.runs.records import Kind
from lit_dola.runs.resume import FilesOf


class Outcome(NamedTuple):
    """What has become of the results that a run was asked for."""

    num_there: int = 0
    """Results that are there."""
    num_missing: int = 0
    """Results that are neither there nor skipped."""
    num_failures: int = 0
    """Lines of ``errors.jsonl``: prompts and results that were skipped."""


def finish_run(
    kind: Kind[Any],
    claim: Claim,
    files_of: FilesOf,
    asked_for: Sequence[Request],
    to_make: Sequence[Request],
) -> Outcome:
    """Merge the logs of all ranks, and count what was skipped and what is missing.

    Args:
        kind: What kind of results the run has made.
        claim: Its claim on its folder.
        files_of: Files that belong to a record.
        asked_for: What it was to make.
        to_make: Those of them that were missing when it started.

    Raises:
        OSError: If the logs cannot be written.
    """
    folder = claim.folder
    made: set[ImageKey] = set()
    failed: set[tuple[int, int]] = set()
    files = RunFiles(folder)  # a folder may have been deleted meanwhile

    def note_made(line: Record) -> Record:
        record = kind.from_line(line)
        if all(files.modified(file) is not None for file in files_of(record) or ()):
            made.add(record.key)
        return line

    def note_failed(line: Record) -> Record:
        failed.add((line["prompt_index"], line["image_index"]))
        return line

    with alone_in(folder):
        living = claim.others()
        num_failures = RecordLog(folder, "errors").merge(note_failed, living)
        if not to_make:
            return Outcome(len(asked_for), 0, num_failures)
        RecordLog(folder, kind.log).merge(note_made, living)
    keys = [request.key for request in asked_for]
    return Outcome(
        sum(key in made for key in keys),
        sum(key not in made and key not in failed for key in keys),
        num_failures,
    )
