"""Accuracy of answers, by the labels of their questions."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

_NEGATIONS = {"no", "not"}
_PUNCTUATION = re.compile(r"[^\w\s]")
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")
_BETWEEN_WORDS = re.compile(
    r"""[!?;:()\[\]{}<>"'`\u2018-\u201f\u00ab\u00bb\u00a1\u00bf\u0964\u3001-\u3003\u3008-\u3011_]"""
    r"|[.,](?!\d)"  # but 3.5 and .5 and 1,000
    r"|(?<=[^\W\d])-|-(?!\.?\d)"  # but -1 and 3-5
)
"""Marks that do not change what an answer means."""
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d*)(\.\d+|(?<=\d))(e[+-]?\d{1,3})?")


def is_right(answer: str, label: Any) -> bool | None:
    """Return whether an answer agrees with a label.

    Labels ``yes`` and ``no``, and true and false, are compared as POPE does (Li et al. 2023, its
    ``evaluate.py``): the answer's first sentence means no if it contains the word "no" or "not",
    else yes. Other labels must be the whole answer: numbers by their value, texts apart from case,
    the form of Unicode, space, and marks between words; signs and points within numbers and marks
    such as those of "C++" and "C#" count. A list of labels is met by any of them.

    Args:
        answer: The answer.
        label: The label: a text, a number, true or false, or a list of them. An empty text is none.

    Returns:
        None if there is no label that answers can be compared with.

    Example:
        >>> is_right("No, there is not.", "no"), is_right("Red.", "red"), is_right("-1", 1)
        (True, True, False)
    """
    if isinstance(label, list):
        found = [is_right(answer, one) for one in label]
        return any(found) if found and None not in found else None
    if isinstance(label, bool):
        label = "yes" if label else "no"
    if not isinstance(label, str | int | float) or not str(label).strip():
        return None
    if _normal(str(label)) in ("yes", "no"):
        return yes_or_no(answer) == _normal(str(label))
    return _meaning(answer) == _meaning(str(label))


def yes_or_no(answer: str) -> str:
    """Return what an answer means: ``no`` if its first sentence has "no" or "not", else ``yes``."""
    words = _normal(answer.split(".")[0]).split()
    return "no" if _NEGATIONS & set(words) else "yes"


POPE_COLUMNS = ("accuracy", "precision", "recall", "F1", "yes ratio")


def pope(answers: Sequence[tuple[str, Any]]) -> tuple[float, ...] | None:
    """Return POPE's figures for answers with labels: those of :data:`POPE_COLUMNS`, as shares.

    "Yes" is the positive class. A share of nothing is 0, as in POPE's ``evaluate.py``.

    Args:
        answers: Answers and their labels; those with labels other than yes and no do not count.

    Returns:
        None if no label is yes or no.
    """
    pairs = [
        (yes_or_no(answer) == "yes", _normal(label) == "yes")
        for answer, label in answers
        if isinstance(label, str) and _normal(label) in ("yes", "no")
    ]
    if not pairs:
        return None
    said, true = (sum(column) for column in zip(*pairs))
    both = sum(said and true for said, true in pairs)
    right = sum(said == true for said, true in pairs)
    precision, recall = both / max(said, 1), both / max(true, 1)
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return right / len(pairs), precision, recall, f1, said / len(pairs)


def _meaning(text: str) -> str | Decimal:
    """Return a text in the form in which texts of one meaning are equal; of a number, its value."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_DASHES)
    words = " ".join(_BETWEEN_WORDS.sub(" ", text).split())
    return Decimal(words.replace(",", "")) if _NUMBER.fullmatch(words) else words


def _normal(text: str) -> str:
    return " ".join(_PUNCTUATION.sub(" ", text).lower().split())
