"""The gallery of a run: ``index.html`` in its folder."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

from lit_dola.reports.html import digest_of, page_file, template_digest, write_page
from lit_dola.reports.reproduce import flags, not_given
from lit_dola.runs.ranks import BEST, best_files
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import ONLY_WITH_DOLA, ImageRecord, common_settings

IMAGES_PER_PAGE = 10_000
"""After this many images the next prompt starts a new page."""
_MOST_COLUMNS = 6
"""Images side by side."""


@dataclass
class _Page:
    number: int
    start: int
    """Range of its records in ``metadata.jsonl``, in bytes."""
    end: int
    num_prompts: int = 0
    num_images: int = 0
    num_passes: int = 0
    """Of the images that were decoded speculatively."""
    num_speculative: int = 0
    digest: Any = field(default_factory=sha256)
    """Of its records."""


def write_gallery(folder: Path, num_failures: int = 0) -> None:
    """Write the gallery of a run, ``index.html``, from its ``metadata.jsonl``.

    The page refers to the images in its folder and copies none. After :data:`IMAGES_PER_PAGE`
    images it continues in ``index-2.html``. Pages that would be the same again are left alone, and
    if nothing has changed since the last time, no record is read. Memory holds the records of one
    prompt at a time.

    Args:
        folder: Folder of a run that has ended, so that its records are merged and in order.
        num_failures: Lines of ``errors.jsonl``.
    """
    log = RecordLog(folder, ImageRecord)
    index = folder / page_file(1)
    # What changes a page without a younger file, such as a file that is gone, begins its digest.
    made_of = f"{template_digest()}-{num_failures}-{int((folder / BEST).exists())}-"
    if _is_newer(index, made_of, [log.path, folder / BEST]):
        return
    best = best_files(folder)
    pages: list[_Page] = []
    settings = common_settings(_divided(log, pages))
    files = [page_file(page.number) for page in pages]
    common = {
        "title": folder.resolve().name,
        "pages": files,
        "settings": settings,
        "only_with_dola": ONLY_WITH_DOLA,
        "num_failures": num_failures,
        "passes": _mean_passes(pages),
        "ranked": bool(best),
        "flags": flags(),
        "not_given": not_given(),
    }
    shared = sha256(json.dumps([common, sorted(best)]).encode())
    for page, file in zip(pages, files):
        digest = shared.copy()
        digest.update(page.digest.digest())
        content = f"{made_of}{len(pages)}-{digest.hexdigest()[:16]}"
        if digest_of(folder / file) != content:
            prompts = _prompts(log, page, settings, best)
            write_page(
                folder / file, "gallery.html", page=page, prompts=prompts, digest=content, **common
            )
    os.utime(index)  # it is newer than its sources
    for old in folder.glob("index-*.html"):
        if old.name not in files:
            old.unlink()


def _is_newer(index: Path, made_of: str, sources: Iterable[Path]) -> bool:
    """Return whether the gallery has the same digest, and is newer than its sources."""
    digest = digest_of(index) or ""
    if not digest.startswith(made_of):
        return False
    num_pages = int(digest.removeprefix(made_of).partition("-")[0])
    if not all((index.parent / page_file(page + 1)).exists() for page in range(num_pages)):
        return False
    written = index.stat().st_mtime_ns
    return all(written >= source.stat().st_mtime_ns for source in sources if source.exists())


def _divided(log: RecordLog, pages: list[_Page]) -> Iterator[ImageRecord]:
    """Yield all records, and append the pages that they are divided into: at least one."""
    page, prompt = _Page(1, 0, 0), None
    pages.append(page)
    for line, content in log.merged():
        record = ImageRecord.from_line(line)
        if record.prompt_index != prompt:
            if page.num_images >= IMAGES_PER_PAGE:
                page = _Page(page.number + 1, page.end, page.end)
                pages.append(page)
            page.num_prompts += 1
            prompt = record.prompt_index
        page.num_images += 1
        if record.forwards is not None:
            page.num_speculative += 1
            page.num_passes += record.forwards
        page.end += len(content)
        page.digest.update(content)
        yield record


def _mean_passes(pages: list[_Page]) -> float | None:
    """Return how many passes the images took on average; None without speculative decoding."""
    images = sum(page.num_speculative for page in pages)
    return sum(page.num_passes for page in pages) / images if images else None


def _prompts(
    log: RecordLog, page: _Page, settings: dict[str, Any], best: set[str]
) -> Iterator[dict[str, Any]]:
    """Yield the prompts of a page, as the template shows them."""
    records = (ImageRecord.from_line(line) for line, _ in log.merged(page.start, page.end))
    for _, images in groupby(records, key=lambda record: record.prompt_index):
        yield _prompt(list(images), settings, best)


def _prompt(records: list[ImageRecord], settings: dict[str, Any], best: set[str]) -> dict[str, Any]:
    """Return a prompt and its images, as the template shows them."""
    first = records[0]
    return {
        "index": first.prompt_index,
        "text": first.prompt,
        "metadata": first.metadata,
        "columns": _columns(len(records)),
        "images": [
            {
                "file": record.file_name,
                "index": record.image_index,
                "best": record.file_name in best,
                "inspection": record.inspection,
                "own": {
                    name: value
                    for name, value in (record.settings | record.how_it_went()).items()
                    if name not in settings
                },
            }
            for record in records
        ],
    }


def _columns(images: int) -> int:
    """Return how many columns divide images evenly, so that no row is nearly empty."""
    rows = math.ceil(images / _MOST_COLUMNS)
    return math.ceil(images / rows)
