"""Starting a run in a folder: which folder to use, and what an earlier run left to do."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from lit_dola.runs.folder import delete_results, image_files
from lit_dola.runs.image_file import is_whole
from lit_dola.runs.records import RESULTS, Kind, Record, RecordLog, RunRecord

OnMismatch = Literal["error", "new_folder", "overwrite"]
_BEFORE_THEY_EXISTED = {
    "strength": 1.0,
    "min_p": None,
    "entropy_temperature": None,
    "speculative": None,
}
"""What settings amount to in a record that is older than they are."""
FilesOf = Callable[[Any], Sequence[str] | None]
"""Returns the files that belong to a record, relative to the folder; None if it must be made again
whatever is there."""

_log = getLogger(__name__)


class RunStart(NamedTuple):
    """Where a run writes, and what it has to make."""

    folder: Path
    missing: list[int]
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
    subjects = {request.key.prompt_index: request.subject for request in plan.requests}
    claim = claim_folder(kind, output_dir, on_mismatch, settings, subjects)
    folder = claim.folder
    try:
        with TemporaryFile(dir=folder) as file:  # fails now rather than after an hour
            began = os.fstat(file.fileno()).st_mtime
        prompts = (request.prompt for request in plan.requests)
        metadata = {prompt.prompt_index: prompt.metadata for prompt in prompts}
        done = _keep_complete(kind, claim, files_of, metadata)
        for failure in plan.failures:
            log = RecordLog(folder, "errors").of_rank(0, claim.token)
            append_line(log, failure._asdict())
    except BaseException:
        claim.release()
        raise
    requests = enumerate(plan.requests)
    missing = [place for place, request in requests if request.key not in done]
    earlier: dict[str, Any] = next((record.settings for record in kind.read(folder)), {})
    return RunStart(folder, missing, began, claim.token, earlier), claim


def claim_folder(
    kind: Kind[Any],
    output_dir: Path,
    on_mismatch: OnMismatch,
    settings: Mapping[str, Any],
    subjects: Mapping[int, str],
) -> Claim:
    """Claim a folder that has no results of other settings or subjects, or of another kind.

    Raises:
        UserError: If ``output_dir`` has some and ``on_mismatch`` is ``error``, or if a run of other
            settings or subjects is writing to the folder.
        OSError: If the folder cannot be made.
    """
    digest = sha256(json.dumps(sorted(subjects.items())).encode()).hexdigest()[:16]
    folder = output_dir
    for number in count(2):
        folder.mkdir(parents=True, exist_ok=True)
        claim = Claim(folder, {**settings, f"{kind.subject}s": digest})
        found = _take(kind, claim, on_mismatch, settings, subjects)
        if not found:
            break
        if on_mismatch == "error":
            raise UserError(
                f"writer.output_dir: {folder} holds results of another run: {'; '.join(found)};"
                f" expected the same settings and {kind.subject}s, another folder, or"
                " writer.on_mismatch new_folder or overwrite"
            )
        folder = Path(f"{os.path.abspath(output_dir)}-{number}")
    if folder != output_dir:
        _log.warning("%s holds results of another run; writing to %s", output_dir, folder)
    return claim


def _take(
    kind: Kind[Any],
    claim: Claim,
    on_mismatch: OnMismatch,
    settings: Mapping[str, Any],
    subjects: Mapping[int, str],
) -> list[str]:
    """Claim a folder unless it has results of another run; returns how that run differed."""
    try:
        claim.take()
    except UserError as error:
        if on_mismatch == "new_folder":
            return [str(error)]
        raise
    try:
        with alone_in(claim.folder):  # an equal run, started at once, must not delete ours
            found = _differences(kind, claim.folder, settings, subjects)
            if found and on_mismatch == "overwrite":
                delete_results(claim.folder)
                return []
    except BaseException:
        claim.release()
        raise
    if found:
        claim.release()
    return found


def _differences(
    kind: Kind[Any], folder: Path, settings: Mapping[str, Any], subjects: Mapping[int, str]
) -> list[str]:
    for log, results in RESULTS.items():
        if log != kind.log and any(RecordLog(folder, log).records()):
            return [f"it made {results}, not {kind.results}"]
    return differences(kind, kind.read(folder), settings, subjects)


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
        before = {**_BEFORE_THEY_EXISTED, **record.settings}
        found = [
            f"{name} was {json.dumps(before[name])}, is {json.dumps(value)}"
            for name, value in settings.items()
            if name in before and not _is_same(name, before, settings)
        ]
        index, subject = record.key.prompt_index, record.subject
        if subjects.get(index, subject) != subject:
            found.append(f"{kind.subject} {index} was {subject!r:.60}, is {subjects[index]!r:.60}")
        if found:
            return found
    return []


def _is_same(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if name == "model_path":  # a path is a name: what it led to is recorded as the checkpoint
        if "checkpoint" in before and before["checkpoint"] == now.get("checkpoint"):
            return True
        return os.path.normpath(str(before[name])) == os.path.normpath(str(now[name]))
    if name == "roles" and before[name] == "auto":  # an old record: what auto led to is not known
        return True
    return bool(before[name] == now[name])


def _keep_complete(
    kind: Kind[Any], claim: Claim, files_of: FilesOf, metadata: Mapping[int, dict[str, Any]]
) -> set[ImageKey]:
    """Merge the logs, dropping records of incomplete results; return the keys of the others.

    The others get the metadata that their entries have now.
    """
    folder = claim.folder
    done: set[ImageKey] = set()

    def keep(line: Record) -> Record | None:
        record = kind.from_line(line)
        wanted = files_of(record)
        if wanted is None or not files.issuperset(wanted):
            return None
        if record.key not in done and not all(is_whole(folder / file) for file in wanted):
            return None
        done.add(record.key)
        now = metadata.get(record.key.prompt_index, record.metadata)
        return line if now == record.metadata else record.with_metadata(now).to_line()

    with alone_in(folder):
        living = claim.others()
        files = image_files(folder)
        RecordLog(folder, kind.log).merge(keep, living)
        # This run finds its own failures again.
        RecordLog(folder, "errors").merge(lambda line: None, living)
    return done
