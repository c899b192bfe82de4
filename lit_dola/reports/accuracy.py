"""Accuracy of answers, by the labels of their questions."""

import re
from collections.abc import Sequence
from typing import Any

_NEGATIONS = {"no", "not"}
_PUNCTUATION = re.compile(r"[^\w\s]")


def is_right(answer: str, label: Any) -> bool | None:
    """Return whether an answer agrees with a label.

    Labels ``yes`` and ``no`` are compared as POPE does (Li et al. 2023, its ``evaluate.py``): the
    answer's first sentence means no if it contains the word "no" or "not", else yes. Other labels
    must be the whole answer, apart from case, punctuation and surrounding space; a list of labels
    is met by any of them.

    Args:
        answer: The answer.
        label: The label, a text, a number or a list of them.

    Returns:
        None if there is no label that answers can be compared with.

    Example:
        >>> is_right("No, there is not.", "no"), is_right("Red.", "red"), is_right("2", 3)
        (True, True, False)
    """
    if isinstance(label, list):
        found = [is_right(answer, one) for one in label]
        return any(found) if found and None not in found else None
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        return None
    expected = _normal(str(label))
    if expected in ("yes", "no"):
        return yes_or_no(answer) == expected
    return _normal(answer) == expected


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


def _normal(text: str) -> str:
    return " ".join(_PUNCTUATION.sub(" ", text).lower().split())
