"""``python main.py export``: runs as a dataset, with a card, perhaps on the Hugging Face hub."""

import json
import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from lit_dola import __version__
from lit_dola.errors import UserError, writing_to
from lit_dola.messages import first_line, printable
from lit_dola.reports.shards import Parquet, Shards, WebDataset, write_shards
from lit_dola.runs.files import write_atomically
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import ImageRecord, common_settings
from lit_dola.settings.checks import given_path, require

SHARDS: dict[str, type[Shards]] = {"webdataset": WebDataset, "parquet": Parquet}
"""Forms of a dataset."""
_PATHS = {"webdataset": "*.tar", "parquet": "data/*.parquet"}
"""Shards of each form, as the hub finds them."""
CARD = "README.md"
"""The card of a dataset."""
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def finished_runs(folders: Sequence[str]) -> list[Path]:
    """Return the folders of runs of ``predict`` that have ended.

    Raises:
        UserError: If one is none, or has not ended.
    """
    runs = [given_path("export", folder) for folder in folders]
    for run in runs:
        log = RecordLog(run, ImageRecord)
        if next(log.read(), None) is None:
            raise UserError(f"{run}: no images to export", "the folder of a run", setting="export")
        if not log.is_merged():
            raise UserError(f"{run} has not ended", "a run that has", setting="export")
    return runs


def export_dataset(
    form: str,
    runs: Sequence[Path],
    output: str,
    images_per_shard: int,
    push: str | None,
    private: bool,
) -> Path:
    """Write runs as shards with a card, and upload them if asked to.

    Args:
        form: webdataset or parquet.
        runs: Folders of runs that have ended.
        output: Folder to write to; created if needed.
        images_per_shard: Images per shard.
        push: Repository on the hub to upload them to, ``owner/name``; None: none.
        private: Create that repository as a private one.

    Returns:
        The card.

    Raises:
        UserError: If an image is missing, the folder cannot be written, or the hub refuses.
    """
    require("webdataset" if form == "webdataset" else "datasets", f"export {form}", extra="export")
    if push is not None:
        _check_push(push)
    folder = given_path("output", output)
    with writing_to(folder, "output"):
        folder.mkdir(parents=True, exist_ok=True)
        shards = write_shards(SHARDS[form](runs), folder, images_per_shard)
        _write_card(folder, form, runs)
    if push is not None:
        _push(push, private, folder, [CARD, *shards], _PATHS[form])
    return folder / CARD


def _write_card(folder: Path, form: str, runs: Sequence[Path]) -> None:
    """Write the card, unless somebody has edited it."""
    path, mark = folder / CARD, folder / f".{CARD}.digest"
    before = sha256(path.read_bytes()).hexdigest() if path.exists() else None
    if before is not None and not (mark.exists() and mark.read_text() == before):
        return
    content = card(form, runs).encode("utf-8", "backslashreplace")
    digest = sha256(content).hexdigest()
    if digest != before:
        write_atomically(path, [content])
        write_atomically(mark, [digest.encode()])


def card(form: str, runs: Sequence[Path]) -> str:
    """Return the card of a dataset, Markdown with a head in YAML."""
    from huggingface_hub import DatasetCardData

    counts = [RecordLog(run, ImageRecord).count() for run in runs]
    settings = [common_settings(ImageRecord.read(run)) for run in runs]
    images = sum(counts)
    size = next((name for most, name in _SIZES if images < most), "n>1M")
    head = DatasetCardData(
        license="other",
        license_name="that-of-the-model",
        task_categories=["text-to-image"],
        size_categories=[size],
        tags=["janus", "dola", "lit-dola", "synthetic"],
        configs=[{"config_name": "default", "data_files": [
            {"split": "train", "path": _PATHS[form]}
        ]}],
    )  # fmt: skip
    models = ", ".join(dict.fromkeys(f"`{own.get('model_path', '?')}`" for own in settings))
    names = [run.resolve().name for run in runs]
    return f"""---
{head.to_yaml()}
---

# {" and ".join(map(_cell, names))}

{images:,} images, drawn by {models} with lit-dola {__version__}: Janus' token distribution,
reshaped at run time by DoLa-static. Each has its prompt, its indices, its seed, and every setting
that shaped it.

{_table(names, counts, settings)}

## License

The weights that drew these images have a license of their own, which may say what images may be
used for; lit-dola's license is about its code alone. Check it, and name yours in the head of this
card, before you publish.
"""


def _table(names: list[str], counts: list[int], settings: list[dict[str, Any]]) -> str:
    """Return a table of the settings of each run; "varies" where its images differ."""
    rows: dict[str, list[Any]] = {"images": [f"{count:,}" for count in counts]}
    for name in dict.fromkeys(name for own in settings for name in own):
        rows[name] = [own.get(name, "varies") for own in settings]
    lines = [["setting", *names], ["---"] * (len(names) + 1)]
    lines += [[name, *values] for name, values in rows.items()]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    """Return a value in a cell of Markdown."""
    if isinstance(value, dict):
        value = ", ".join(f"{name} {own}" for name, own in value.items())
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", printable(text))


def _check_push(repository: str) -> None:
    """Check what an upload needs, before shards are written.

    Raises:
        UserError: If it is no repository, or there is no token.
    """
    from huggingface_hub import get_token

    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository!r:.60}", "owner/name", setting="push")
    if not get_token():
        raise UserError("no token", "HF_TOKEN in the environment, or hf auth login", setting="push")


def _push(repository: str, private: bool, folder: Path, files: list[str], owned: str) -> None:
    """Upload a dataset in one commit; shards of an earlier one that are gone here are deleted.

    Raises:
        UserError: If the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Without a reply: OSError, and the base of the errors of the library that sends requests. An
    # upload of a large file raises a RuntimeError.
    refusals: tuple[Any, ...] = (HFValidationError, *HfHubHTTPError.__bases__, RuntimeError)
    api = HfApi(library_name="lit-dola", library_version=__version__)
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=files,
            delete_patterns=owned,
            commit_message=f"Upload by lit-dola {__version__}",
        )
    except refusals as error:
        raise UserError(
            f"{repository}: {first_line(error)}; the shards are in {os.fspath(folder)}",
            "a repository that the token may write to",
            setting="push",
        ) from error
