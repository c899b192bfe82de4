"""``python main.py export``: runs in the forms that other programs read."""

from pathlib import Path
from typing import cast, get_args

from jsonargparse.typing import PositiveInt

from lit_dola.errors import UserError, writing_to
from lit_dola.messages import printable, suggestion
from lit_dola.reports.dataset import SHARDS, export_dataset, finished_runs
from lit_dola.reports.export import Export, write_export
from lit_dola.reports.openai_batch import write_batch
from lit_dola.runs.records import ImageRecord
from lit_dola.settings.checks import given_path

_BATCH = "openai-batch"
_FORMS = (*SHARDS, _BATCH, *get_args(Export))


def export(
    form: str,
    runs: list[str],
    output: str,
    images_per_shard: PositiveInt = 5000,
    push: str | None = None,
    private: bool = False,
) -> None:
    """Write runs in a form that other programs read.

    Args:
        form: webdataset or parquet; openai-batch, the results of a file of requests; or a form that
            the program of a benchmark reads.
        runs: Folders of runs of predict that have ended; several for webdataset and parquet only.
        output: Folder to write to; created if needed.
        images_per_shard: Images per file of webdataset and parquet.
        push: Repository on the Hugging Face hub, OWNER/NAME, to upload webdataset or parquet to,
            with HF_TOKEN of the environment; null: none.
        private: Create that repository as a private one.
    """
    if form not in _FORMS:
        more = suggestion(form, _FORMS) or f"; expected one of {', '.join(_FORMS)}"
        raise UserError(f"{form!r:.40}: an unknown form{more}", setting="export")
    folders = finished_runs(runs)
    if form in SHARDS:
        path = export_dataset(form, folders, output, images_per_shard, push, private)
    else:
        for setting, several in (("push", push is not None), ("runs", len(folders) > 1)):
            if several:
                raise UserError(f"{form} is no dataset", f"{' or '.join(SHARDS)}", setting=setting)
        path = _export_run(form, folders[0], output)
    print(printable(str(path)))


def _export_run(form: str, run: Path, output: str) -> Path:
    folder = given_path("output", output)
    with writing_to(folder, "output"):
        if form == _BATCH:
            return write_batch(run, folder)
        write_export(cast(Export, form), run, ImageRecord.read(run), folder)
    return folder
