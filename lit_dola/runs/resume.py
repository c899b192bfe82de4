"""Starting a run: choosing its folder, and finding what an earlier run left to do."""

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, NamedTuple

from lit_dola.data.columns import Line
from lit_dola.data.pictures import Picture, digest_of
from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure, PictureRequest, RequestKey
from lit_dola.errors import UserError
from lit_dola.registry import record_types
from lit_dola.runs.claim import Claim, FolderInUse
from lit_dola.runs.files import append_line
from lit_dola.runs.folder import RunFiles, delete_results
from lit_dola.runs.image_file import is_whole
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import RunRecord
from lit_dola.runs.run_file import NAME as RUN_FILE
from lit_dola.runs.run_file import RunFile

OnMismatch = Literal["error", "new_folder", "overwrite"]
FilesOf = Callable[[Any], Sequence[str] | None]
"""Returns the files that belong to a record, relative to the folder; None if it must be
generated again."""

_log = getLogger(__name__)
_CONTENTS = {"model_path": "checkpoint", "lens": "lens_digest"}
"""Settings that are paths, and what identifies the content to which they lead."""


class RunStart(NamedTuple):
    """The folder of a run, and the results still to generate."""

    folder: Path
    missing: Sequence[int]
    """Positions of the requests that are not done."""
    began: float
    """When the run began, in the file system's own time."""
    token: str
    """Names the run's own logs."""
    earlier: dict[str, Any]
    """Settings of a result that an earlier run left there; empty if it left none."""


def start_run(
    kind: type[RunRecord],
    plan: RunPlan,
    output_dir: Path,
    on_mismatch: OnMismatch,
    settings: Mapping[str, Any],
    files_of: FilesOf,
) -> tuple[RunStart, Claim]:
    """Prepare the folder of a run, keeping the results of an earlier one.

    Args:
        kind: Record type of its results.
        plan: The plan of the run.
        output_dir: As the setting ``writer.output_dir``.
        on_mismatch: Action if the folder has results of other settings or subjects.
        settings: Settings by name, as a record has them.
        files_of: Files that belong to a record.

    Returns:
        The start, and the claim on the folder, to be released at the end.
    """
    wanted = _Wanted(kind, settings, {}, {}, {}, {}, files_of)
    starts = range(len(plan.requests)) if plan.entry_starts is None else plan.entry_starts
    for request in map(plan.requests.__getitem__, starts):
        index = request.entry.index
        wanted.subjects[index] = request.subject
        wanted.metadata[index] = request.entry.metadata
        if own := request.own_settings:
            wanted.own_settings[index] = own
        if isinstance(request, PictureRequest):
            wanted.pictures[index] = request.pictures
    claim, found = claim_folder(wanted, output_dir, on_mismatch)
    folder = claim.folder
    try:
        with TemporaryFile(dir=folder) as file:  # fails now rather than after an hour
            began = os.fstat(file.fileno()).st_mtime
        for failure in plan.failures:
            log = RecordLog(folder, Failure).of_rank(0, claim.token)
            append_line(log, failure.to_line())
    except BaseException:
        claim.release()
        raise
    missing: Sequence[int] = range(len(plan.requests))
    if found.done:
        places = enumerate(plan.requests)
        missing = array("q", (place for place, it in places if it.key not in found.done))
    return RunStart(folder, missing, began, claim.token, found.settings), claim


class _Wanted(NamedTuple):
    """The requests of a run, as far as earlier results are compared with them."""

    kind: type[RunRecord]
    settings: Mapping[str, Any]
    subjects: dict[int, str]
    """Subjects of the results, by the index of their entry in the file."""
    metadata: dict[int, dict[str, Any]]
    """Metadata of the entries, likewise."""
    own_settings: dict[int, dict[str, Any]]
    """Settings of single entries, likewise."""
    pictures: dict[int, Sequence[Picture]]
    """Pictures of the entries, likewise."""
    files_of: FilesOf


class _Keys:
    """Keys of results, in a few bytes per prompt."""

    _FEW = 1024

    def __init__(self) -> None:
        self._images: dict[int, int] = {}
        """By prompt, a number whose bits are its images."""
        self._others: set[RequestKey] = set()

    def add(self, key: RequestKey) -> None:
        """Add a key."""
        if key.sample_index < self._FEW:
            images = self._images.get(key.entry_index, 0)
            self._images[key.entry_index] = images | 1 << key.sample_index
        else:
            self._others.add(key)

    def __contains__(self, key: RequestKey) -> bool:
        if key.sample_index < self._FEW:
            return bool(self._images.get(key.entry_index, 0) >> key.sample_index & 1)
        return key in self._others

    def __bool__(self) -> bool:
        return bool(self._images or self._others)


class _Found(NamedTuple):
    """Results of an earlier run."""

    done: _Keys
    """Results that are complete."""
    settings: dict[str, Any]
    """Settings of one of them; empty if there is none."""


class _Mismatch(Exception):
    """A folder has results of another run."""


def claim_folder(
    wanted: _Wanted, output_dir: Path, on_mismatch: OnMismatch
) -> tuple[Claim, _Found]:
    """Claim a folder without results of other settings or subjects, or of another kind."""
    folder = output_dir
    for number in count(2):
        folder.mkdir(parents=True, exist_ok=True)
        claim = Claim(folder)
        try:
            claim.take()
            found = _take_over(claim, wanted, on_mismatch)
            break
        except (FolderInUse, _Mismatch) as mismatch:
            if isinstance(mismatch, FolderInUse) and on_mismatch != "new_folder":
                raise
            if on_mismatch == "error":
                raise UserError(
                    f"{folder} holds results of another run: {mismatch}",
                    f"the same settings and {wanted.kind.entry_noun}s, another folder, or"
                    " writer.on_mismatch new_folder or overwrite",
                    setting="writer.output_dir",
                ) from None
        folder = Path(f"{os.path.abspath(output_dir)}-{number}")
    if folder != output_dir:
        _log.warning("%s belongs to another run; writing to %s", output_dir, folder)
    return claim, found


def _take_over(claim: Claim, wanted: _Wanted, on_mismatch: OnMismatch) -> _Found:
    """Keep the complete results of a claimed folder, or delete those of another run.

    Raises:
        _Mismatch: If there are some and they are not to be deleted.
    """
    try:
        try:
            return _keep_complete(claim.folder, wanted)
        except _Mismatch:
            if on_mismatch != "overwrite":
                raise
            delete_results(claim.folder)
            return _Found(_Keys(), {})
    except BaseException:
        claim.release()
        raise


def differences(
    kind: type[RunRecord],
    records: Iterable[RunRecord],
    settings: Mapping[str, Any],
    subjects: Mapping[int, str],
) -> list[str]:
    """Return how an earlier run differed, one text per difference; empty if it did not.

    Args:
        kind: Record type of the results.
        records: Records of the earlier run's results.
        settings: Settings by name, as a record has them.
        subjects: Subjects of the results, by the index of their entry in the file.
    """
    for record in records:
        found = [
            *_other_settings(record.settings, settings),
            *_other_subject(kind, record.key.entry_index, record.subject, subjects),
        ]
        if found:
            return found
    return []


def _other_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name, value in now.items():
        if name in before and not _is_same(name, before, now):
            yield f"{name} was {json.dumps(before[name])}, is {json.dumps(value)}"


def _other_subject(
    kind: type[RunRecord], index: int, subject: str, subjects: Mapping[int, str]
) -> Iterator[str]:
    if subjects.get(index, subject) != subject:
        yield f"{kind.entry_noun} {index} was {subject!r:.60}, is {subjects[index]!r:.60}"


def _other_pictures(record: RunRecord, pictures: Sequence[Picture], began: float) -> Iterator[str]:
    """Yield which pictures are other files than those that a result is about.

    Args:
        record: The result.
        pictures: The pictures now.
        began: Moment since which a file must have been written to be another one.
    """
    for picture, before in zip(pictures, record.digests or ()):
        if not isinstance(picture, Path):
            continue
        stat = picture.stat()
        # A copy may have the time of its original, but the change of a file's status is now.
        if max(stat.st_mtime, stat.st_ctime) >= began and digest_of(picture) != before:
            index = record.key.entry_index
            yield f"{record.entry_noun} {index}: {picture.name} was another picture"


def _is_same(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if content := _CONTENTS.get(name):  # a path is a name: what it led to is recorded as well
        if content in before and before[content] == now.get(content):
            return True
        return os.path.normpath(str(before[name])) == os.path.normpath(str(now[name]))
    return bool(before[name] == now[name])


def _keep_complete(folder: Path, wanted: _Wanted) -> _Found:
    """Merge the logs, dropping records of incomplete results, and return the others.

    The others get the metadata that their entries have now.

    Raises:
        _Mismatch: If a record is of another run; nothing was changed.
    """
    kind = wanted.kind
    for other in record_types().values():
        if other is not kind and any(RecordLog(folder, other).read()):
            raise _Mismatch(f"it generated {other.results}, not {kind.results}")
    found = _Found(_Keys(), {})
    files, (unchanged_until, verified) = RunFiles(folder), _times_of_ended_run(folder)

    def keep(line: Line) -> Line | None:
        record = kind.from_line(line)
        key = record.key
        pictures = wanted.pictures.get(key.entry_index, ())
        other = [
            *_other_subject(kind, key.entry_index, record.subject, wanted.subjects),
            *_other_pictures(record, pictures, unchanged_until),
        ]
        own = wanted.own_settings.get(key.entry_index)
        if own or record.settings != found.settings:  # those of the record before are fine
            now = {**wanted.settings, **own} if own else wanted.settings
            other = [*_other_settings(record.settings, now), *other]
            found.settings.clear()
            found.settings.update(record.settings)
        if other:
            raise _Mismatch("; ".join(other))
        names = wanted.files_of(record)
        if names is None:
            return None
        for name in names:
            modified = files.modified(name)
            if modified is None or (modified > verified and not is_whole(folder / name)):
                return None
        found.done.add(key)
        now = wanted.metadata.get(key.entry_index, record.metadata)
        return line if now == record.metadata else record.with_metadata(now).to_line()

    RecordLog(folder, kind).merge(keep)
    # This run finds its own failures again.
    RecordLog(folder, Failure).merge(lambda line: None)
    return found


def _times_of_ended_run(folder: Path) -> tuple[float, float]:
    """Return until when pictures are known to be those of the results, and files to be complete.

    A run that ended in order wrote every file completely, and ``run.json`` after them. A file that
    was damaged later is younger.
    """
    run = RunFile.read(folder)
    if run is None or run.ended is None:
        return 0.0, 0.0
    return run.began or 0.0, (folder / RUN_FILE).stat().st_mtime
