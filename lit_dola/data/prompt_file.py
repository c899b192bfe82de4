"""Reading prompt files, in every form that benchmarks and people have them in."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lit_dola.data.batch_file import is_request, request_of
from lit_dola.data.entry_file import (
    LISTS,
    check_writable,
    entries_of,
    find_key,
    kind_of,
    listed,
    make_entries,
    read_entries,
    read_text,
    some_names,
)
from lit_dola.data.requests import Entry, Failure
from lit_dola.errors import UserError

PROMPT_KEYS = ("prompt", "text", "caption", "prompts")
"""Keys that may hold an object's prompt, in any case; the first one found counts."""
_OTHER_KEY = ", or data.prompt_key to name it"


def read_prompts(
    path: Path,
    skipped: list[Failure] | None = None,
    key: str | None = None,
    notes: list[str] | None = None,
) -> list[Entry]:
    """Read a prompt file, or a folder of them.

    Args:
        path: A file in one of the forms of :func:`lit_dola.data.entry_file.read_entries`. A folder
            of ``.txt`` files has one prompt per file, whose ``id`` is the file's name without its
            suffix (DPG-Bench's form); a folder of other such files has the prompts of all, in the
            order of their names, with the name without its suffix as ``style`` and the index in
            that file as ``style_index`` (HPSv2's form).
        skipped: Receives the entries that are not prompts; if None, the first one is an error.
        key: The key, or the column, that holds the prompt; None: one of :data:`PROMPT_KEYS`.
        notes: Receives notes about files of a folder that were not read.

    Raises:
        UserError: If the file cannot be read, contains no prompt, or has a bad entry that is not
            skipped; the message names the file and the entry or line.
    """
    make = prompt_maker(key)
    if not path.is_dir():
        return read_entries(path, make, skipped)
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    texts = [file for file in files if file.suffix.lower() == ".txt" and file.is_file()]
    lists = [file for file in files if file.suffix.lower() in LISTS and file.is_file()]
    read = texts or lists
    if not read:
        raise UserError(
            "a folder without prompts",
            f".txt files with one prompt each, or {', '.join(LISTS)}",
            at=path,
        )
    if notes is not None and (left := [file.name for file in files if file not in read]):
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        notes.append(f"{path}: not read: {', '.join(left[:3])}{more}")
    try:
        return make_entries(_one_each(texts) if texts else _of_all(lists), make, skipped)
    except UserError as error:
        raise error.within(path) from error.__cause__


def check_prompts(entries: Iterable[Any]) -> list[Entry]:
    """Return prompts from a list of the kind that a prompt file contains."""
    return make_entries(listed(entries), prompt_maker(), None)


def prompt_maker(key: str | None = None) -> Callable[[int, Any], Entry]:
    """Return a function that converts an entry to a prompt."""
    keys = PROMPT_KEYS if key is None else (key.strip().lower(),)
    names: set[str] = set()

    def make(index: int, entry: Any) -> Entry:
        count = None
        if isinstance(entry, dict) and is_request(entry):
            entry, count = request_of(entry, names)
        if isinstance(entry, str):
            text, metadata = entry, {}
        elif isinstance(entry, dict):
            own = find_key(entry, keys)
            if own is None:
                asked = "one of the keys " * (key is None) + ", ".join(keys[:3])
                found = some_names(entry) or "no keys"
                raise UserError(f"no prompt among {found}", f"{asked}{_OTHER_KEY}")
            text, metadata = entry[own], {name: entry[name] for name in entry if name != own}
        else:
            raise UserError(f"found {kind_of(entry)}", "a string or an object")
        if not isinstance(text, str):
            raise UserError(f"prompt is {kind_of(text)}", "a string")
        if not text.strip():
            raise UserError("prompt is empty", "a text")
        check_writable("prompt", text)
        check_writable("metadata", metadata)
        return Entry(index, text.strip(), metadata, count)

    return make


def _one_each(files: list[Path]) -> tuple[Iterable[tuple[str, Any]], Callable[..., Any]]:
    """Return one entry per file, and a function that reads it."""
    entries = ((path.name, path) for path in files)
    return entries, lambda path, where: {"id": path.stem, "prompt": read_text(path)}


def _of_all(files: list[Path]) -> tuple[Iterable[tuple[str, Any]], Callable[..., Any]]:
    """Return the entries of several files, each with the name of its file."""
    return chain.from_iterable(map(_styled, files)), lambda entry, where: entry


def _styled(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        entries, parse = entries_of(path)
        for index, (where, entry) in enumerate(entries):
            found = parse(entry, where)
            own = {"prompt": found} if isinstance(found, str) else found
            place = {"style": path.stem, "style_index": index}
            yield f"{path.name}: {where}", {**place, **own} if isinstance(own, dict) else own
    except UserError as error:
        raise error.within(path.name) from error.__cause__


class OwnSettings(NamedTuple):
    """Settings of a single entry."""

    seed: int | None
    negative_prompt: str | None


_OWN = OwnSettings._fields
_MOST_SEED = 2**32 - 1


def names_of_settings(metadata: Mapping[str, Any]) -> list[str]:
    """Return which settings an entry has."""
    spelt = {name.strip().lower() for name in metadata}
    return [name for name in _OWN if name in spelt]


def own_settings(metadata: Mapping[str, Any]) -> OwnSettings:
    """Return the settings of an entry; null, or an empty cell of a table, is none."""
    found = {name: metadata.get(find_key(metadata, (name,)) or "") for name in _OWN}
    seed, negative = found["seed"], found["negative_prompt"]
    if isinstance(seed, str) and seed.strip().isdecimal():  # as tables have it
        seed = int(seed)
    if seed is not None and not (type(seed) is int and 0 <= seed <= _MOST_SEED):
        raise UserError(f"seed is {seed!r:.40}", f"an integer, 0 <= seed <= {_MOST_SEED}")
    if negative is not None and not isinstance(negative, str):
        raise UserError(f"negative_prompt is {kind_of(negative)}", "a text")
    return OwnSettings(seed, negative)
