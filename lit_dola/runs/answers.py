"""The records of answers: one line per question in ``answers.jsonl``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_dola.data.question_file import pictures_of, question_of
from lit_dola.data.requests import ImageKey, question_subject
from lit_dola.runs.record_log import Record
from lit_dola.runs.records import Kind

_OWN = ("question_index", "pictures", "answer", "tokens", "settings", "at_once")
_GIVEN = "given_"
"""What comes before a key of the question file that is also one of ours."""


@dataclass(frozen=True)
class AnswerRecord:
    """What a line of ``answers.jsonl`` says about an answer."""

    question_index: int
    """Index of the question in its file, from 0."""
    metadata: dict[str, Any]
    """The entry of the question file."""
    pictures: list[str]
    """The pictures, relative to the run's folder, with ``/``."""
    answer: str
    tokens: list[int]
    """Token ids of the answer, the end of the sentence included."""
    settings: dict[str, Any]
    """Every setting that shaped the answer, and the versions of the packages."""
    at_once: int | None = None
    """Questions answered at once, if the batch was divided because it did not fit into memory."""

    @property
    def key(self) -> ImageKey:
        """The question's index, and 0."""
        return ImageKey(self.question_index, 0)

    @property
    def question(self) -> str:
        """The question."""
        return question_of(self.metadata)

    @property
    def subject(self) -> str:
        """The pictures and the question."""
        return question_subject(pictures_of(self.metadata), self.question)

    def with_metadata(self, metadata: dict[str, Any]) -> "AnswerRecord":
        """Return the record with what the entry holds now."""
        return replace(self, metadata=metadata)

    @classmethod
    def from_line(cls, line: Record) -> "AnswerRecord":
        """Read a line."""
        own, metadata = own_keys(line, _OWN)
        return cls(metadata=metadata, **own)

    def to_line(self) -> Record:
        """Return the line to write: the entry's keys, then ours."""
        own = {name: getattr(self, name) for name in _OWN if name != "at_once"}
        at_once = {} if self.at_once is None else {"at_once": self.at_once}
        return {**given_keys(self.metadata, _OWN), **own, **at_once}


def own_keys(line: Record, own: Sequence[str]) -> tuple[Record, dict[str, Any]]:
    """Divide a line into our keys and the entry's, those under the names they had there."""
    ours = {name: line[name] for name in own if name in line}
    entry = {
        given if (given := name.removeprefix(_GIVEN)) in own else name: value
        for name, value in line.items()
        if name not in ours
    }
    return ours, entry


def given_keys(entry: dict[str, Any], own: Sequence[str]) -> Record:
    """Return an entry's keys as a line holds them: ``given_`` before those that are also ours."""
    return {f"{_GIVEN}{name}" if name in own else name: value for name, value in entry.items()}


ANSWERS = Kind("answers", "question", AnswerRecord.from_line)
