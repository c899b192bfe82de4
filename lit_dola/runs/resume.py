"""Starting a run in a folder: which folder to use, and what an earlier run left to do."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, NamedTuple

from lit_dola.data.requests import ImageRequest, RunPlan
from lit_dola.errors import UserError
from lit_dola.runs.files import append_line
from lit_dola.runs.folder import delete_images, image_files
from lit_dola.runs.records import ImageRecord, Record, RecordLog, read_images

OnMismatch = Literal["error", "new_folder", "overwrite"]

_log = getLogger(__name__)


class RunStart(NamedTuple):
    """Where a run writes, and what it has to make."""

    folder: Path
    missing: list[int]
    """Places of the requests that are not done yet."""
    began: float
    """When the run began, in the file system's own time."""


def start_run(
    plan: RunPlan,
    output_dir: Path,
    on_mismatch: OnMismatch,
    settings: Mapping[str, Any],
    file_of: Callable[[ImageRequest], str],
    is_complete: Callable[[ImageRecord, set[str]], bool],
) -> RunStart:
    """Prepare the folder of a run, keeping the results of an earlier one.

    Args:
        plan: What the run is to make.
        output_dir: Folder that the user asked for.
        on_mismatch: What to do if the folder has results of other settings or prompts.
        settings: Settings by name, as a record has them.
        file_of: File that a request leads to, relative to the folder.
        is_complete: Whether all files of a record are among those that the folder contains.

    Raises:
        UserError: If the folder has results of another run, or does not belong to a run.
        OSError: If the folder cannot be made or written to.
    """
    prompts = {request.prompt.prompt_index: request.prompt.text for request in plan.requests}
    folder = choose_folder(output_dir, on_mismatch, settings, prompts)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:  # fails now rather than after an hour
        began = os.fstat(file.fileno()).st_mtime
    done = _keep_complete(folder, is_complete)
    for failure in plan.failures:
        append_line(RecordLog(folder, "errors").of_rank(0), failure._asdict())
    requests = enumerate(plan.requests)
    missing = [place for place, request in requests if file_of(request) not in done]
    return RunStart(folder, missing, began)


def choose_folder(
    output_dir: Path,
    on_mismatch: OnMismatch,
    settings: Mapping[str, Any],
    prompts: Mapping[int, str],
) -> Path:
    """Return a folder that has no results of other settings or prompts.

    Raises:
        UserError: If ``output_dir`` has some and ``on_mismatch`` is ``error``.
    """
    folder = output_dir
    for number in count(2):
        found = differences(read_images(folder), settings, prompts)
        if not found:
            break
        if on_mismatch == "error":
            raise UserError(
                f"writer.output_dir: {folder} holds images of another run: {'; '.join(found)};"
                " expected the same settings and prompts, another folder, or"
                " writer.on_mismatch new_folder or overwrite"
            )
        if on_mismatch == "overwrite":
            delete_images(folder)
            break
        folder = Path(f"{os.path.abspath(output_dir)}-{number}")
    if folder != output_dir:
        _log.warning("%s holds images of another run; writing to %s", output_dir, folder)
    return folder


def differences(
    records: Iterable[ImageRecord], settings: Mapping[str, Any], prompts: Mapping[int, str]
) -> list[str]:
    """Return how an earlier run differed, one text per difference; empty if it did not.

    Args:
        records: Records of the earlier run's images.
        settings: Settings by name, as a record has them.
        prompts: Prompts by their index in the file.
    """
    for record in records:
        found = [
            f"{name} was {json.dumps(record.settings[name])}, is {json.dumps(value)}"
            for name, value in settings.items()
            if name in record.settings and record.settings[name] != value
        ]
        index = record.prompt_index
        if prompts.get(index, record.prompt) != record.prompt:
            found.append(f"prompt {index} was {record.prompt!r:.60}, is {prompts[index]!r:.60}")
        if found:
            return found
    return []


def _keep_complete(folder: Path, is_complete: Callable[[ImageRecord, set[str]], bool]) -> set[str]:
    """Merge the logs, dropping records of incomplete images; return the files of the others."""
    files = image_files(folder)
    done = set()

    def keep(line: Record) -> bool:
        record = ImageRecord.from_line(line)
        if is_complete(record, files):
            done.add(record.file)
        return record.file in done

    RecordLog(folder, "metadata").merge(keep)
    RecordLog(folder, "errors").merge(lambda line: False)  # this run finds them again
    return done
