"""Scores of answers and rankings, by the labels of their entries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_dola.data.entry_file import find_key
from lit_dola.errors import UserError
from lit_dola.reports.accuracy import POPE_COLUMNS, is_right, pope
from lit_dola.reports.scores import Score, Table
from lit_dola.runs.answers import AnswerRecord
from lit_dola.runs.ranks import RankRecord

SKILL_KEYS = ("tag", "skill", "category")
"""Keys that may name an entry's skill; the first one found counts."""


def skill_of(metadata: Mapping[str, Any]) -> str:
    """Return the skill that an entry is about, or ``all``."""
    key = find_key(metadata, SKILL_KEYS)
    return "all" if key is None else str(metadata[key])


def scores_of(records: Sequence[AnswerRecord | RankRecord], file: Path) -> list[Score]:
    """Score the results of a run; those without a label are left out."""
    scores = []
    for record in records:
        right = _is_right(record)
        if right is not None:
            scores.append(Score(skill_of(record.metadata), *record.key, float(right)))
    if not scores:
        raise UserError("no entry has a label", "the key label, which is right", at=file)
    return scores


def _is_right(record: AnswerRecord | RankRecord) -> bool | None:
    label = record.metadata.get("label")
    if isinstance(record, AnswerRecord):
        return is_right(record.answer, label)
    if not record.order or label is None:
        return None
    if isinstance(label, int):
        return record.order[0] == label
    return bool(record.labels[record.order[0]] == label)


def tables_of(records: Mapping[str, Sequence[Any]]) -> list[Table]:
    """Return further tables of a report: POPE's, if there are answers to yes/no questions."""
    rows = {}
    for name, own in records.items():
        answers = [
            (record.answer, record.metadata.get("label"))
            for record in own
            if isinstance(record, AnswerRecord)
        ]
        if found := pope(answers):
            rows[name] = found
    title = "Yes and no, as POPE reports them, in percent"
    return [Table("pope", title, POPE_COLUMNS, rows)] if rows else []
