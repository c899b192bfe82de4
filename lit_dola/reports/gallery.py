"""The gallery of a run: ``index.html`` in its folder."""

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from lit_dola.reports.html import write_page
from lit_dola.runs.ranks import best_files
from lit_dola.runs.records import IMAGES, ImageRecord, common_settings

IMAGES_PER_PAGE = 10_000
"""After this many images the next prompt starts a new page."""


class _Page(NamedTuple):
    number: int
    num_prompts: int
    num_images: int
    num_passes: int = 0
    """Of the images that were decoded speculatively."""
    num_speculative: int = 0


def write_gallery(folder: Path, num_failures: int = 0) -> None:
    """Write the gallery of a run, ``index.html``, from its ``metadata.jsonl``.

    The page refers to the images in its folder and copies none. After :data:`IMAGES_PER_PAGE`
    images it continues in ``index-2.html``. Memory holds the records of one prompt at a time.

    Args:
        folder: Folder of a run that has ended, so that its records are merged and in order.
        num_failures: Lines of ``errors.jsonl``.

    Raises:
        OSError: If a page cannot be written.
    """
    settings = common_settings(IMAGES.read(folder))
    best = best_files(folder)
    pages = _pages(IMAGES.read(folder))
    by_prompt = _by_prompt(IMAGES.read(folder))
    prompts = (_prompt(list(images), settings, best) for images in by_prompt)
    files = [page_file(page.number) for page in pages]
    for page, file in zip(pages, files):
        write_page(
            folder / file,
            "gallery.html",
            title=folder.resolve().name,
            page=page,
            pages=files,
            settings=settings,
            num_failures=num_failures,
            passes=_mean_passes(pages),
            ranked=bool(best),
            prompts=islice(prompts, page.num_prompts),
        )
    for old in folder.glob("index-*.html"):
        if old.name not in files:
            old.unlink()


def page_file(number: int) -> str:
    """Return the file name of a page of the gallery, counted from 1."""
    return "index.html" if number == 1 else f"index-{number}.html"


def _by_prompt(records: Iterable[ImageRecord]) -> Iterator[Iterator[ImageRecord]]:
    return (images for _, images in groupby(records, key=lambda record: record.prompt_index))


def _pages(records: Iterable[ImageRecord]) -> list[_Page]:
    """Divide the prompts into pages, at least one."""
    pages = [_Page(1, 0, 0)]
    for images in _by_prompt(records):
        if pages[-1].num_images >= IMAGES_PER_PAGE:
            pages.append(_Page(len(pages) + 1, 0, 0))
        page, forwards = pages[-1], [record.forwards for record in images]
        passes = [count for count in forwards if count is not None]
        pages[-1] = _Page(
            page.number,
            page.num_prompts + 1,
            page.num_images + len(forwards),
            page.num_passes + sum(passes),
            page.num_speculative + len(passes),
        )
    return pages


def _mean_passes(pages: list[_Page]) -> float | None:
    """Return how many passes the images took on average; None without speculative decoding."""
    images = sum(page.num_speculative for page in pages)
    return sum(page.num_passes for page in pages) / images if images else None


def _prompt(records: list[ImageRecord], settings: dict[str, Any], best: set[str]) -> dict[str, Any]:
    """Return a prompt and its images, as the template shows them."""
    first = records[0]
    return {
        "index": first.prompt_index,
        "text": first.prompt,
        "metadata": first.metadata,
        "images": [
            {
                "file": record.file,
                "index": record.image_index,
                "best": record.file in best,
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
