"""HTML pages from the templates next to this file: one file each, no server, no network."""

import json
import os
import re
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from lit_dola import __version__
from lit_dola.runs.files import make_folder, write_atomically

_DIGEST = re.compile(rb'<meta name="digest" content="([0-9a-f-]+)">')


def write_page(path: Path, template: str, **content: Any) -> None:
    """Render a template and write it, escaping everything that users wrote."""
    stream = _environment().get_template(template).stream(version=__version__, **content)
    stream.enable_buffering(1000)
    write_atomically(path, (part.encode("utf-8", "backslashreplace") for part in stream))


@cache
def template_digest() -> str:
    """Return a digest of the templates and the code of pages."""
    folder = resources.files("lit_dola.reports") / "templates"
    sources = sorted(folder.iterdir(), key=lambda source: source.name)
    content = b"".join(source.read_bytes() for source in sources)
    return sha256(__version__.encode() + content).hexdigest()[:16]


def digest_of(page: Path) -> str | None:
    """Return the digest that a page was written with; None if it has none."""
    try:
        with page.open("rb") as file:
            found = _DIGEST.search(file.read(2000))
    except OSError:
        return None
    return found[1].decode() if found else None


def page_file(number: int) -> str:
    """Return the file name of one of several pages, counted from 1."""
    return "index.html" if number == 1 else f"index-{number}.html"


def image_address(image: Path, page_folder: Path, copy: str | None = None) -> str:
    """Return the URL of an image relative to a page.

    Args:
        image: The image.
        page_folder: Folder of the page.
        copy: Where to copy the image to, relative to the page's folder, with ``/``; None: the page
            refers to the image where it is.
    """
    if copy is not None:
        for folder in reversed(Path(copy).parents[:-1]):
            make_folder(page_folder / folder)
        write_atomically(page_folder / copy, [image.read_bytes()])
        image = page_folder / copy
    # As bytes, because a folder's name need not be UTF-8.
    return quote(os.fsencode(Path(os.path.relpath(image, page_folder)).as_posix()))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lit_dola.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = _plain
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment


def _plain(value: Any) -> str:
    """Format a value for people: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
