"""Settings that are texts, and the encodings of texts that users write."""

import codecs
from types import NoneType
from typing import Any, get_args

from jsonargparse import ArgumentParser
from jsonargparse._typehints import ActionTypeHint

from lit_dola.errors import UserError

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings that a file names by its first bytes; without a mark it is UTF-8."""


def decode(content: bytes) -> str:
    """Return the text of a file: UTF-8 whatever the locale, or as its byte order mark says.

    Raises:
        UserError: If it is not in that encoding.
    """
    encoding = next((_MARKS[mark] for mark in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise UserError(f"not {name}: {error.reason} at byte {error.start}") from error


def check_unicode(what: str, text: str) -> None:
    """Check that a text can be encoded: bytes of a command line need not be UTF-8.

    Raises:
        UserError: If it has half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} has half a surrogate pair, {error.object[error.start]!a}", "Unicode"
        ) from error


class TextAction(ActionTypeHint):
    """Setting that is a text, taken literally: YAML would read null, a number or a comment.

    Where its type also admits lists or objects, a text that begins like one is read as YAML.
    """

    def _check_type(self, value: Any, *args: Any, **how: Any) -> Any:
        admits_more = {*get_args(self._typehint)} - {str, NoneType}
        if isinstance(value, str) and not (admits_more and value.lstrip()[:1] in ("[", "{")):
            return value
        if not isinstance(value, str | list | dict | None):
            raise TypeError(f"{self.dest}: {value!r}; expected a text, in quotes if it is in YAML")
        return super()._check_type(value, *args, **how)  # type: ignore[no-untyped-call]


def take_literally(parser: ArgumentParser, owner: type, group: str = "") -> None:
    """Take the texts among the settings of a class as they are written.

    Args:
        parser: The parser of its settings.
        owner: The class; its attribute ``texts`` has their names.
        group: Prefix of the names in the parser, e.g. ``model.``.
    """
    names = {f"{group}{name}" for name in getattr(owner, "texts", ())}
    for action in parser._actions:
        if action.dest in names:
            action.__class__ = TextAction
