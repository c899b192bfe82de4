"""The best image of each prompt of a run: ``best.json`` in its folder, shown by its gallery."""

from pathlib import Path
from typing import Any

from lit_dola.data.requests import Failure
from lit_dola.reports.gallery import write_gallery
from lit_dola.runs.files import to_json, write_atomically
from lit_dola.runs.ranks import BEST, RankRecord
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import common_settings


def write_best(run: Path, ranks: Path) -> None:
    """Write ``best.json`` into a run, and its gallery again.

    Args:
        run: Folder of a run of ``predict``.
        ranks: Folder of the rankings of its images, merged.
    """
    records = list(RankRecord.read(ranks))
    prompts: dict[str, Any] = {}
    for record in records:
        files = record.metadata["image"]
        prompts[str(record.metadata["prompt_index"])] = {
            "best": files[record.order[0]],
            "scores": dict(zip(files, record.scores)),
        }
    content = {"settings": common_settings(records), "prompts": prompts}
    write_atomically(run / BEST, [to_json(content)])
    write_gallery(run, RecordLog(run, Failure).count())
