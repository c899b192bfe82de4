"""The nouns of a run: entries of a file, requested results, and failures."""

import json
from array import array
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, NamedTuple, overload

from lit_dola.data.columns import LogRecord
from lit_dola.data.pictures import Picture

OnError = Literal["stop", "skip"]
ID = "custom_id"
"""Key of the name of a request of OpenAI's batch interface, unique in its file."""


class RequestKey(NamedTuple):
    """Identifies a result within a run; also the key of its random stream."""

    entry_index: int
    sample_index: int
    """Index among the results of the entry: of an image; 0 for answers and rankings."""


@dataclass(slots=True)
class Entry:
    """One entry of a file: a prompt, a question, or an item to rank."""

    index: int
    """Index in the file, from 0."""
    text: str
    metadata: dict[str, Any]
    """Everything else in the entry, including its ``id`` if the file has one."""
    count: int | None = None
    """Number of images that it asks for, if it is a request of a batch; None: as the run says."""


class NegativePrompt(NamedTuple):
    """The text of the unconditional branch."""

    text: str
    input_ids: list[int]
    """Token ids, from BOS to begin-of-image."""


class EncodedPrompt(NamedTuple):
    """A prompt as the model reads it."""

    entry: Entry
    input_ids: list[int]
    """Token ids, from BOS to begin-of-image."""
    seed: int | None = None
    """As :attr:`ImageRequest.seed`."""
    negative: NegativePrompt | None = None
    """As :attr:`ImageRequest.negative`."""
    images: Sequence[int] | None = None
    """Indices of its images; None: as those of the other prompts."""


@dataclass(slots=True)
class Request:
    """One requested result, whatever the task."""

    entry: Entry
    input_ids: list[int]
    """Token ids of its prompt; empty if the scorer builds its own."""

    @property
    def num_input_ids(self) -> int:
        """Number of token ids in its longest branch."""
        return len(self.input_ids)

    @property
    def own_settings(self) -> dict[str, Any]:
        """Settings that shape this result and not the whole run, as its record has them."""
        return {}

    @property
    def key(self) -> RequestKey:
        """The key of its random stream, unique within the run."""
        return RequestKey(self.entry.index, 0)

    @property
    def subject(self) -> str:
        """The content of the request in one line; a folder has results of one subject per key."""
        return self.entry.text


@dataclass(slots=True)
class ImageRequest(Request):
    """One image to generate."""

    image_index: int
    """Index among the images of its prompt, from 0."""
    seed: int | None = None
    """Its own seed; None: the seed of the run."""
    negative: NegativePrompt | None = None
    """The negative prompt; None: the text is padded away in the unconditional branch."""

    @property
    def num_input_ids(self) -> int:
        """Number of token ids in its longest branch."""
        return max(len(self.input_ids), len(self.negative.input_ids) if self.negative else 0)

    @property
    def own_settings(self) -> dict[str, Any]:
        """Settings that shape this image and not the whole run, as its record has them."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return seed if self.negative is None else {**seed, "negative_prompt": self.negative.text}

    @property
    def key(self) -> RequestKey:
        """Prompt index and image index."""
        return RequestKey(self.entry.index, self.image_index)


@dataclass(slots=True)
class PictureRequest(Request):
    """A request about pictures."""

    pictures: tuple[Picture, ...]
    names: tuple[str, ...]
    """The pictures as the entry names them."""


@dataclass(slots=True)
class QuestionRequest(PictureRequest):
    """One question to answer; in its token ids the image token stands for the pictures."""

    @property
    def subject(self) -> str:
        """The pictures and the question."""
        return question_subject(self.names, self.entry.text)


@dataclass(slots=True)
class RankRequest(PictureRequest):
    """Labels to rank for a picture, or pictures to rank for a text."""

    labels: tuple[str, ...]
    """The candidates, or one text."""
    over: Literal["labels", "pictures"] = "labels"
    """The candidates: labels of a picture, or pictures of a text."""
    input_ids: list[int] = field(default_factory=list, init=False)

    @property
    def subject(self) -> str:
        """The pictures and the labels."""
        return rank_subject(self.names, self.labels)


@dataclass
class Failure(LogRecord):
    """A skipped entry or result and the reason: one line of ``errors.jsonl``."""

    log = "errors"
    key_columns = ("prompt_index", "image_index")

    prompt_index: int
    image_index: int | None
    """None: every result of the entry."""
    prompt: str | None
    """None: the entry has no text."""
    reason: str
    custom_id: str | None = None
    """Name of the request, if the entry is one of OpenAI's batch interface."""

    @classmethod
    def of(cls, request: Request, reason: str) -> "Failure":
        """Return the failure of a request; the reason names its entry."""
        index, sample = request.key
        return cls.of_entry(request.entry, f"entry {index}: {reason}", sample)

    @classmethod
    def of_entry(cls, entry: Entry, reason: str, sample: int | None = None) -> "Failure":
        """Return the failure of a result of an entry, or of all its results."""
        name = None if entry.count is None else entry.metadata[ID]
        return cls(entry.index, sample, entry.text, reason, name)


class ImageRequests(Sequence[ImageRequest]):
    """Several images of each prompt, created on access: a million takes no memory.

    Args:
        prompts: The prompts.
        images: Indices of the images of each prompt that has none of its own.
        seeds: Seed of each image, all images of the first entry first; None: that of the run.
    """

    def __init__(
        self,
        prompts: Sequence[EncodedPrompt],
        images: Sequence[int],
        seeds: Sequence[int] | None = None,
    ) -> None:
        self._prompts = [prompt for prompt in prompts if len(self._own(prompt, images))]
        self._images = images
        self._seeds = seeds
        counts = (len(self._own(prompt, images)) for prompt in self._prompts)
        self._ends = array("q", accumulate(counts, initial=0))

    @property
    def starts(self) -> Sequence[int]:
        """Positions of the first image of each prompt."""
        return self._ends[:-1]

    def __len__(self) -> int:
        return self._ends[-1]

    @staticmethod
    def _own(prompt: EncodedPrompt, images: Sequence[int]) -> Sequence[int]:
        return images if prompt.images is None else prompt.images

    @overload
    def __getitem__(self, place: int) -> ImageRequest: ...
    @overload
    def __getitem__(self, place: slice) -> list[ImageRequest]: ...
    def __getitem__(self, place: int | slice) -> ImageRequest | list[ImageRequest]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        number = bisect(self._ends, place) - 1
        return self._request(self._prompts[number], place - self._ends[number])

    def __iter__(self) -> Iterator[ImageRequest]:
        for prompt in self._prompts:
            for image in range(len(self._own(prompt, self._images))):
                yield self._request(prompt, image)

    def _request(self, encoded: EncodedPrompt, image: int) -> ImageRequest:
        entry, input_ids, seed, negative, _ = encoded
        if self._seeds is not None:
            seed = self._seeds[entry.index * len(self._images) + image]
        index = self._own(encoded, self._images)[image]
        return ImageRequest(entry, input_ids, index, seed, negative)


class Selection(Sequence[Request]):
    """Some of the requests of a run.

    Args:
        requests: All of them.
        places: Positions of the selected ones.
    """

    def __init__(self, requests: Sequence[Request], places: Sequence[int]) -> None:
        self._requests = requests
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Request: ...
    @overload
    def __getitem__(self, place: slice) -> list[Request]: ...
    def __getitem__(self, place: int | slice) -> Request | list[Request]:
        if isinstance(place, slice):
            return [self._requests[each] for each in self._places[place]]
        return self._requests[self._places[place]]


def rank_subject(pictures: Sequence[str], labels: Sequence[str]) -> str:
    """Return the subject of a ranking, in one line."""
    return json.dumps([*pictures, *labels], ensure_ascii=False)


def question_subject(pictures: Sequence[str], question: str) -> str:
    """Return the subject of an answer, in one line."""
    return " ".join([*pictures, question])


def share(count: int, world_size: int, rank: int) -> range:
    """Return the positions of a rank's requests among ``count``; possibly none."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)
