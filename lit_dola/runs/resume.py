"""Starting a run in a folder: which folder to use, and what an earlier run left to do."""

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import count
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, NamedTuple

from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import ImageKey
from lit_dola.errors import UserError
from lit_dola.runs.claim import Claim, alone_in
from lit_dola.runs.files import append_line
from lit_dola.runs.folder import RunFiles, delete_results
from lit_dola.runs.image_file import is_whole
from lit_dola.runs.record_log import RESULTS, Record, RecordLog
from lit_dola.runs.records import Kind, RunRecord
from lit_dola.runs.run_file import NAME as RUN_FILE
from lit_dola.runs.run_file import RunFile

OnMismatch = Literal["error", "new_folder", "overwrite"]
_BEFORE_THEY_EXISTED = {
    "strength": 1.0,
    "min_p": None,
    "entropy_temperature": None,
    "speculative": None,
    "negative_prompt": None,
}
"""What settings amount to in a record that is older than they are."""
FilesOf = Callable[[Any], Sequence[str] | None]
"""Returns the files that belong to a record, relative to the folder; None if it must be made again
whatever is there."""

_log = getLogger(__name__)


class RunStart(NamedTuple):
    """Where a run writes, and what it has to make."""

    folder: Path
    missing: Sequence[int]
    """Places of the requests that are not done yet."""
    began: float
    """When the run began, in the file system's own time."""
    token: str
    """Names the run's own logs."""
    earlier: dict[str, Any]
    """Settings of a result that an earlier run left there; empty if it left none."""


def start_run(
    kind: Kind[Any],
    plan: RunPlan,
    output_dir: Path,
    on_mismatch: OnMismatch,
    settings: Mapping[str, Any],
    files_of: FilesOf,
) -> tuple[RunStart, Claim]:
    """Prepare the folder of a run, keeping the results of an earlier one.

    Args:
        kind: What kind of results it makes.
        plan: What the run is to make.
        output_dir: Folder that the user asked for.
        on_mismatch: What to do if the folder has results of other settings or subjects.
        settings: Settings by name, as a record has them.
        files_of: Files that belong to a record.

    Returns:
        The start, and the claim on the folder, to be released at the end.

    Raises:
        UserError: If the folder has results of another run, is written to by one, or does not
            belong to a run.
        OSError: If the folder cannot be made or written to.
    """
    wanted = _Wanted(kind, settings, {}, {}, {}, files_of)
    for request in plan.requests[:: plan.per_entry]:
        index = request.prompt.prompt_index
        wanted.subjects[index] = request.subject
        wanted.metadata[index] = request.prompt.metadata
        if own := request.own_settings:
            wanted.own_settings[index] = own
    claim, found = claim_folder(wanted, output_dir, on_mismatch)
    folder = claim.folder
    try:
        with TemporaryFile(dir=folder) as file:  # fails now rather than after an hour
            began = os.fstat(file.fileno()).st_mtime
        for failure in plan.failures:
            log = RecordLog(folder, "errors").of_rank(0, claim.token)
            append_line(log, failure._asdict())
    except BaseException:
        claim.release()
        raise
    missing: Sequence[int] = range(len(plan.requests))
    if found.done:
        places = enumerate(plan.requests)
        missing = array("q", (place for place, it in places if it.key not in found.done))
    return RunStart(folder, missing, began, claim.token, found.settings), claim


class _Wanted(NamedTuple):
    """What a run is to make, as far as it concerns what is there already."""

    kind: Kind[Any]
    settings: Mapping[str, Any]
    subjects: dict[int, str]
    """What the results are about, by the index of their entry in the file."""
    metadata: dict[int, dict[str, Any]]
    """What else the entries hold, likewise."""
    own_settings: dict[int, dict[str, Any]]
    """Settings of single entries, likewise."""
    files_of: FilesOf


class _Keys:
    """Keys of results, in a few bytes per prompt."""

    _FEW = 1024

    def __init__(self) -> None:
        self._images: dict[int, int] = {}
        """By prompt, a number whose bits are its images."""
        self._others: set[ImageKey] = set()

    def add(self, key: ImageKey) -> None:
        """Add a key."""
        if key.image_index < self._FEW:
            images = self._images.get(key.prompt_index, 0)
            self._images[key.prompt_index] = images | 1 << key.image_index
        else:
            self._others.add(key)

    def __contains__(self, key: ImageKey) -> bool:
        if key.image_index < self._FEW:
            return bool(self._images.get(key.prompt_index, 0) >> key.image_index & 1)
        return key in self._others

    def __bool__(self) -> bool:
        return bool(self._images or self._others)


class _Found(NamedTuple):
    """What an earlier run left."""

    done: _Keys
    """Results that are complete."""
    settings: dict[str, Any]
    """Settings of one of them; empty if there is none."""


class _Mismatch(Exception):
    """A folder has results of another run."""


def claim_folder(
    wanted: _Wanted, output_dir: Path, on_mismatch: OnMismatch
) -> tuple[Claim, _Found]:
    """Claim a folder that has no results of other settings or subjects, or of another kind.

    Raises:
        UserError: If ``output_dir`` has some and ``on_mismatch`` is ``error``, or if a run of other
            settings or subjects is writing to the folder.
        OSError: If the folder cannot be made.
    """
    subject = f"{wanted.kind.subject}s"
    entries = [sorted(wanted.subjects.items()), sorted(wanted.own_settings.items())]
    digest = sha256(json.dumps(entries).encode()).hexdigest()[:16]
    folder = output_dir
    for number in count(2):
        folder.mkdir(parents=True, exist_ok=True)
        claim = Claim(folder, {**wanted.settings, subject: digest})
        try:
            found = _take(claim, wanted, on_mismatch)
            break
        except _Mismatch as mismatch:
            if on_mismatch == "error":
                raise UserError(
                    f"writer.output_dir: {folder} holds results of another run: {mismatch};"
                    f" expected the same settings and {subject}, another folder, or"
                    " writer.on_mismatch new_folder or overwrite"
                ) from None
        folder = Path(f"{os.path.abspath(output_dir)}-{number}")
    if folder != output_dir:
        _log.warning("%s holds results of another run; writing to %s", output_dir, folder)
    return claim, found


def _take(claim: Claim, wanted: _Wanted, on_mismatch: OnMismatch) -> _Found:
    """Claim a folder unless it has results of another run.

    Raises:
        _Mismatch: If it has; the message says how that run differed.
    """
    try:
        claim.take()
    except UserError as error:
        if on_mismatch == "new_folder":
            raise _Mismatch(str(error)) from error
        raise
    try:
        with alone_in(claim.folder):  # an equal run, started at once, must not delete ours
            try:
                return _keep_complete(claim, wanted)
            except _Mismatch:
                if on_mismatch != "overwrite":
                    raise
                delete_results(claim.folder)
                return _Found(_Keys(), {})
    except BaseException:
        claim.release()
        raise


def differences(
    kind: Kind[Any],
    records: Iterable[RunRecord],
    settings: Mapping[str, Any],
    subjects: Mapping[int, str],
) -> list[str]:
    """Return how an earlier run differed, one text per difference; empty if it did not.

    Args:
        kind: What kind of results.
        records: Records of the earlier run's results.
        settings: Settings by name, as a record has them.
        subjects: What the results are about, by the index of their entry in the file.
    """
    for record in records:
        found = [
            *_other_settings(record.settings, settings),
            *_other_subject(kind, record.key.prompt_index, record.subject, subjects),
        ]
        if found:
            return found
    return []


def _other_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    before = {**_BEFORE_THEY_EXISTED, **before}
    for name, value in now.items():
        if name in before and not _is_same(name, before, now):
            yield f"{name} was {json.dumps(before[name])}, is {json.dumps(value)}"


def _other_subject(
    kind: Kind[Any], index: int, subject: str, subjects: Mapping[int, str]
) -> Iterator[str]:
    if subjects.get(index, subject) != subject:
        yield f"{kind.subject} {index} was {subject!r:.60}, is {subjects[index]!r:.60}"


def _is_same(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if name == "model_path":  # a path is a name: what it led to is recorded as the checkpoint
        if "checkpoint" in before and before["checkpoint"] == now.get("checkpoint"):
            return True
        return os.path.normpath(str(before[name])) == os.path.normpath(str(now[name]))
    if name == "roles" and before[name] == "auto":  # an old record: what auto led to is not known
        return True
    return bool(before[name] == now[name])


def _keep_complete(claim: Claim, wanted: _Wanted) -> _Found:
    """Merge the logs, dropping records of incomplete results, and return the others.

    The others get the metadata that their entries have now.

    Raises:
        _Mismatch: If a record is of another run; nothing was changed.
    """
    folder, kind = claim.folder, wanted.kind
    for log, results in RESULTS.items():
        if log != kind.log and any(RecordLog(folder, log).read()):
            raise _Mismatch(f"it made {results}, not {kind.results}")
    found = _Found(_Keys(), {})
    files, verified = RunFiles(folder), _verified(folder)

    def keep(line: Record) -> Record | None:
        record = kind.from_line(line)
        key = record.key
        other = [*_other_subject(kind, key.prompt_index, record.subject, wanted.subjects)]
        own = wanted.own_settings.get(key.prompt_index)
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
        now = wanted.metadata.get(key.prompt_index, record.metadata)
        return line if now == record.metadata else record.with_metadata(now).to_line()

    living = claim.others()
    RecordLog(folder, kind.log).merge(keep, living)
    # This run finds its own failures again.
    RecordLog(folder, "errors").merge(lambda line: None, living)
    return found


def _verified(folder: Path) -> float:
    """Return until when files were seen to be complete, in the file system's own time.

    A run that ended in order has written all its files as wholes, and ``run.json`` after them. A
    file that was damaged later is younger.
    """
    run = RunFile.read(folder)
    if run is None or run.ended is None:
        return 0.0
    return (folder / RUN_FILE).stat().st_mtime
