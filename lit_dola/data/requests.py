"""The nouns of a run: prompts and questions, what is requested of them, failures, and the plan."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from lit_dola.janus.checkpoint import Checkpoint, ModelFolder
from lit_dola.janus.tokenizer import PromptEncoder

OnError = Literal["stop", "skip"]


class ImageKey(NamedTuple):
    """Identifies an image within a run; also the key of its random stream."""

    prompt_index: int
    image_index: int


class Prompt(NamedTuple):
    """One entry of a prompt file."""

    prompt_index: int
    """Index in the file, from 0."""
    text: str
    metadata: dict[str, Any]
    """Everything else in the entry, including its ``id`` if the file has one."""


class Failure(NamedTuple):
    """A prompt or an image that was skipped, and why: one line of ``errors.jsonl``."""

    prompt_index: int
    image_index: int | None
    """None: every image of the prompt."""
    prompt: str | None
    """None: the entry contains no prompt."""
    reason: str

    @classmethod
    def of(cls, request: "Request", reason: str) -> "Failure":
        """Return the failure of a request; the reason names its entry."""
        prompt, key = request.prompt, request.key
        return cls(*key, prompt.text, f"entry {prompt.prompt_index}: {reason}")


class Request(Protocol):
    """One result to make, whatever the task."""

    @property
    def prompt(self) -> Prompt:
        """The entry that it comes from."""

    @property
    def input_ids(self) -> list[int]:
        """Token ids of its prompt."""

    @property
    def key(self) -> ImageKey:
        """The key of its random stream; no other request of the run has it."""

    @property
    def subject(self) -> str:
        """What the result is about: a folder has results of one subject per key."""


class ImageRequest(NamedTuple):
    """One image to make."""

    prompt: Prompt
    image_index: int
    """Index among the images of its prompt, from 0."""
    input_ids: list[int]
    """Token ids of the prompt, from BOS to begin-of-image."""

    @property
    def key(self) -> ImageKey:
        """The key of its random stream."""
        return ImageKey(self.prompt.prompt_index, self.image_index)

    @property
    def subject(self) -> str:
        """The prompt."""
        return self.prompt.text


class QuestionRequest(NamedTuple):
    """One question to answer."""

    prompt: Prompt
    """The entry; its text is the question, its metadata the whole entry."""
    pictures: tuple[Path, ...]
    names: tuple[str, ...]
    """The pictures as the entry names them."""
    input_ids: list[int]
    """Token ids of the prompt, with the image token at the places of the pictures."""

    @property
    def key(self) -> ImageKey:
        """The key of its random stream."""
        return ImageKey(self.prompt.prompt_index, 0)

    @property
    def subject(self) -> str:
        """The pictures and the question."""
        return question_subject(self.names, self.prompt.text)


class RankRequest(NamedTuple):
    """Labels to rank for a picture, or pictures to rank for a text."""

    prompt: Prompt
    """The entry; its metadata is the whole entry."""
    pictures: tuple[Path, ...]
    """One picture, or the candidates."""
    names: tuple[str, ...]
    """The pictures as the entry names them."""
    labels: tuple[str, ...]
    """The candidates, or one text."""
    over: Literal["labels", "pictures"] = "labels"
    """What the candidates are."""

    @property
    def input_ids(self) -> list[int]:
        """None: the scorer makes its own."""
        return []

    @property
    def key(self) -> ImageKey:
        """Index of the entry, and 0."""
        return ImageKey(self.prompt.prompt_index, 0)

    @property
    def subject(self) -> str:
        """The pictures and the labels."""
        return rank_subject(self.names, self.labels)


def rank_subject(pictures: Sequence[str], labels: Sequence[str]) -> str:
    """Return what a ranking is about, in one line."""
    return json.dumps([*pictures, *labels], ensure_ascii=False)


def question_subject(pictures: Sequence[str], question: str) -> str:
    """Return what an answer is about, in one line."""
    return " ".join([*pictures, question])


@dataclass
class RunPlan:
    """What a run is to make, shared by the data module, the model and the callbacks.

    The data module creates it, the writer removes the images that are already done, and the model
    decides what the settings leave to it.
    """

    prompt_file: Path
    """For messages."""
    on_error: OnError
    """Whether an image that cannot be made ends the run or is skipped."""
    model: ModelFolder
    tokenizer: PromptEncoder | None
    """The tokenizer of a Janus; None for another model."""
    requests: Sequence[Request]
    """Results still to make; at first all that are asked for."""
    failures: list[Failure] = field(default_factory=list)
    """Entries of the prompt file that were skipped."""
    num_done: int = 0
    """Results that an earlier run has made."""
    batch_size: int | None = None
    """Results per batch; None until the model is loaded, if they depend on its memory."""
    compile: bool | None = None
    """Whether the decoding step is compiled; None if the settings and the device decide."""

    def __post_init__(self) -> None:
        self.asked_for = self.requests
        """All results that are asked for, whether done or not."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The Janus of the run."""
        assert isinstance(self.model, Checkpoint)
        return self.model

    @property
    def encoder(self) -> PromptEncoder:
        """The tokenizer of that Janus."""
        assert self.tokenizer is not None
        return self.tokenizer

    @property
    def longest_prompt(self) -> int:
        """Token ids of the longest prompt still to run."""
        return max(len(request.input_ids) for request in self.requests)

    def keep(self, places: list[int]) -> None:
        """Keep only the requests at these places: the others are done already."""
        self.num_done = len(self.requests) - len(places)
        self.requests = [self.requests[place] for place in places]
