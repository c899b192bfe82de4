"""Records of answers: one line per question in ``answers.jsonl``."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lit_dola.data.columns import REST
from lit_dola.data.pictures import Picture, digest_of
from lit_dola.data.question_file import pictures_of, question_of
from lit_dola.data.requests import QuestionRequest, question_subject
from lit_dola.runs.records import RunRecord


@dataclass(frozen=True)
class AnswerRecord(RunRecord):
    """A line of ``answers.jsonl``: an answer."""

    log = "answers"
    results = "answers"
    entry_noun = "question"
    key_columns = ("question_index",)

    metadata: dict[str, Any] = field(metadata=REST)
    """The entry of the question file."""
    question_index: int
    """Index of the question in its file, from 0."""
    pictures: list[str]
    """The pictures, relative to the run's folder, with ``/``."""
    answer: str
    tokens: list[int]
    """Token ids of the answer, the end of the sentence included."""
    settings: dict[str, Any]
    """Every setting that shaped the answer, and the versions of the packages."""
    at_once: int | None = None
    """Questions answered at once, if the batch was divided because it did not fit into memory."""
    digests: list[str] | None = None
    """Of the pictures' files, see :func:`lit_dola.data.pictures.digest_of`."""
    logprobs: list[float] | None = None
    """Log-probability in nats of each token under the model's own distribution: final layer, the
    row with the pictures, temperature 1."""
    sampled_logprobs: list[float] | None = None
    """The same under the distribution that it was drawn from; 0 if greedy."""

    @classmethod
    def of(
        cls,
        request: QuestionRequest,
        text: str,
        tokens: list[int],
        at_once: int | None,
        logprobs: list[list[float]] | None,
        settings: dict[str, Any],
        name_of: Callable[[Picture], str],
    ) -> "AnswerRecord":
        """Return the record of an answer."""
        names = [*map(name_of, request.pictures)]
        entry = request.entry
        digests = [*map(digest_of, request.pictures)]
        return cls(
            entry.metadata, entry.index, names, text, tokens, settings, at_once, digests,
            *(logprobs or ()),
        )  # fmt: skip

    @property
    def question(self) -> str:
        """The question."""
        return question_of(self.metadata)

    @property
    def subject(self) -> str:
        """The pictures and the question."""
        return question_subject(pictures_of(self.metadata), self.question)
