"""The records of answers: one line per question in ``answers.jsonl``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_dola.data.question_file import pictures_of, question_of
from lit_dola.data.requests import ImageKey, question_subject
from lit_dola.runs.records import Kind, Record, RecordLog

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
        own = {name: line[name] for name in _OWN if name in line}
        rest = {name: value for name, value in line.items() if name not in own}
        metadata = {
            given if (given := name.removeprefix(_GIVEN)) in _OWN else name: value
            for name, value in rest.items()
        }
        return cls(metadata=metadata, **own)

    def to_line(self) -> Record:
        """Return the line to write: the entry's keys, then ours."""
        entry = {
            f"{_GIVEN}{name}" if name in _OWN else name: value
            for name, value in self.metadata.items()
        }
        at_once = {} if self.at_once is None else {"at_once": self.at_once}
        return {
            **entry,
            "question_index": self.question_index,
            "pictures": self.pictures,
            "answer": self.answer,
            "tokens": self.tokens,
            "settings": self.settings,
            **at_once,
        }


ANSWERS = Kind("answers", "question", AnswerRecord.from_line)


def read_answers(folder: Path) -> Iterator[AnswerRecord]:
    """Yield the records of a run's answers, in the order of its log.

    Raises:
        UserError: If a line is not the record of an answer.
    """
    return map(AnswerRecord.from_line, RecordLog(folder, "answers").records())
