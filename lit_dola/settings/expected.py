"""Allowed values of a setting in words, for messages in Python."""

import math
import operator
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_BELOW = {operator.ge: "<=", operator.gt: "<"}
_ABOVE = {operator.le: "<=", operator.lt: "<"}
_NUMBERS = {int: "an integer", float: "a number"}
_WORDS = {bool: "True or False", NoneType: "None", str: "a text"}


def expected(name: str, hint: Any) -> str:
    """Return the allowed values of a setting in words.

    Example:
        >>> from jsonargparse.typing import PositiveInt
        >>> expected("top_k", PositiveInt | None)
        'an integer, 0 < top_k, or None'
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return ", or ".join(expected(name, part) for part in parts)
    if origin is Literal:
        *first, last = map(repr, parts)
        return f"{', '.join(first)} or {last}" if first else last
    if origin is tuple:
        return f"{len(parts)} of: {'; '.join(expected('', part) for part in parts)}"
    if origin is list:
        return f"a list, each {expected('', parts[0])}"
    if restrictions := getattr(hint, "_restrictions", None):
        limits = _range(name, restrictions)
        return f"{_NUMBERS[hint._type]}, {limits}" if limits else _NUMBERS[hint._type]
    return _WORDS.get(hint) or _NUMBERS.get(hint) or str(hint)


def range_of(hint: Any) -> tuple[float, float]:
    """Return the smallest and the largest value of a type of numbers."""
    limits: list[tuple[Any, float]] = getattr(hint, "_restrictions", [])
    return (
        max([limit for sign, limit in limits if sign in _BELOW], default=-math.inf),
        min([limit for sign, limit in limits if sign in _ABOVE], default=math.inf),
    )


def _range(name: str, restrictions: list[tuple[Callable[..., bool], float]]) -> str:
    """Return ``0 <= alpha <= 1``."""
    finite = [(sign, limit) for sign, limit in restrictions if math.isfinite(limit)]
    below = [f"{limit} {_BELOW[sign]} " for sign, limit in finite if sign in _BELOW]
    above = [f" {_ABOVE[sign]} {limit}" for sign, limit in finite if sign in _ABOVE]
    return "".join([*below, name or "it", *above]) if finite else ""
