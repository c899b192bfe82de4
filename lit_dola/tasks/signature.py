"""Functions that take the settings of a model by name, and tell which ones those are."""

import textwrap
from collections.abc import Callable, Container
from inspect import Parameter, signature
from typing import Any, TypeVar

from docstring_parser import parse

F = TypeVar("F", bound=Callable[..., Any])
_PLACE = "settings:"


def takes_settings_of(owner: type, leave_out: Container[str]) -> Callable[[F], F]:
    """Give a function with ``**settings`` the signature and the documentation of all of them.

    ``help()``, ``inspect.signature`` and the completion of notebooks then show each setting with
    its type, its default and its description, which stand in the code once: at their owner.

    Args:
        owner: The class whose settings it takes.
        leave_out: Those that it does not.
    """

    def decorate(function: F) -> F:
        own = signature(function)
        kept = [it for it in own.parameters.values() if it.kind is not Parameter.VAR_KEYWORD]
        names = {it.name for it in kept}
        settings = [
            it.replace(kind=Parameter.KEYWORD_ONLY)
            for it in signature(owner).parameters.values()
            if it.name not in names and it.name not in leave_out
        ]
        function.__signature__ = own.replace(parameters=[*kept, *settings])  # type: ignore[attr-defined]
        function.__doc__ = _documented(function.__doc__ or "", owner, [it.name for it in settings])
        return function

    return decorate


def _documented(text: str, owner: type, names: list[str]) -> str:
    """Put the descriptions of settings where a docstring has the line about ``settings``."""
    told = {it.arg_name: it.description or "" for it in parse(owner.__doc__ or "").params}
    lines = []
    for line in text.splitlines():
        if not line.strip().startswith(_PLACE):
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        for name in names:
            description = " ".join(told[name].split())
            lines += textwrap.wrap(
                f"{name}: {description}", 100, initial_indent=indent,
                subsequent_indent=indent + "    ",
            )  # fmt: skip
    return "\n".join(lines)
