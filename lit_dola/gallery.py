"""A page to look at a run: ``index.html`` in its folder."""

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from lit_dola.page import common_settings, settings_of, write_page
from lit_dola.run_folder import Lines, Record

IMAGES_A_PAGE = 10_000
"""Past that many another page begins, with the next prompt."""


class _Page(NamedTuple):
    number: int
    num_prompts: int
    num_images: int


def write_gallery(folder: Path, num_failures: int = 0) -> None:
    """Write the gallery of a run, ``index.html``, from the lines of its ``metadata.jsonl``.

    Images are referred to, not copied: the page stands in their folder. With more than
    :data:`IMAGES_A_PAGE` images it goes on in ``index-2.html``. Memory holds the records of
    one prompt at a time.

    Args:
        folder: Folder of a run that has ended: its lines are merged, and so are in order.
        num_failures: Lines of ``errors.jsonl``.

    Raises:
        OSError: If a page cannot be written.
    """
    lines = Lines(folder, "metadata")
    settings = common_settings(lines.records())
    pages = _pages(lines.records())
    prompts = (_prompt(list(images), settings) for images in _by_prompt(lines.records()))
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
            prompts=islice(prompts, page.num_prompts),
        )
    for old in folder.glob("index-*.html"):
        if old.name not in files:
            old.unlink()


def page_file(number: int) -> str:
    """Name of a page of the gallery, from 1."""
    return "index.html" if number == 1 else f"index-{number}.html"


def _by_prompt(records: Iterable[Record]) -> Iterator[Iterator[Record]]:
    return (images for _, images in groupby(records, key=lambda record: record["prompt_index"]))


def _pages(records: Iterable[Record]) -> list[_Page]:
    """How the prompts are shared out over pages; one page at least."""
    pages = [_Page(1, 0, 0)]
    for images in _by_prompt(records):
        if pages[-1].num_images >= IMAGES_A_PAGE:
            pages.append(_Page(len(pages) + 1, 0, 0))
        number, num_prompts, num_images = pages[-1]
        pages[-1] = _Page(number, num_prompts + 1, num_images + sum(1 for _ in images))
    return pages


def _prompt(records: list[Record], settings: dict[str, Any]) -> dict[str, Any]:
    """A prompt and its images, as the template shows them."""
    first = records[0]
    return {
        "index": first["prompt_index"],
        "text": first["prompt"],
        "metadata": first["metadata"],
        "images": [
            {
                "file": record["file"],
                "index": record["image_index"],
                "inspection": record.get("inspection"),
                "own": {
                    name: value
                    for name, value in settings_of(record).items()
                    if name not in settings
                },
            }
            for record in records
        ],
    }
