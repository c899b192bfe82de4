"""The nouns of a run: prompts and questions, what is requested of them, and failures."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, overload

from lit_dola.data.pictures import Picture

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


class NegativePrompt(NamedTuple):
    """The text of the unconditional branch."""

    text: str
    input_ids: list[int]
    """Token ids, from BOS to begin-of-image."""


class EncodedPrompt(NamedTuple):
    """A prompt as the model reads it."""

    prompt: Prompt
    input_ids: list[int]
    """Token ids, from BOS to begin-of-image."""
    seed: int | None = None
    """As :attr:`ImageRequest.seed`."""
    negative: NegativePrompt | None = None
    """As :attr:`ImageRequest.negative`."""


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
    def num_input_ids(self) -> int:
        """How many of them there are, in its longest branch."""

    @property
    def own_settings(self) -> dict[str, Any]:
        """Settings that shape this result and not all of the run."""

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
    seed: int | None = None
    """Its own seed; None: the seed of the run."""
    negative: NegativePrompt | None = None
    """What guidance leads away from; None: nothing in particular, the text is padded away."""

    @property
    def num_input_ids(self) -> int:
        """Token ids of its longest branch."""
        return max(len(self.input_ids), len(self.negative.input_ids) if self.negative else 0)

    @property
    def own_settings(self) -> dict[str, Any]:
        """Settings that shape this image and not all of the run, as its record has them."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return seed if self.negative is None else {**seed, "negative_prompt": self.negative.text}

    @property
    def key(self) -> ImageKey:
        """The key of its random stream."""
        return ImageKey(self.prompt.prompt_index, self.image_index)

    @property
    def subject(self) -> str:
        """The prompt."""
        return self.prompt.text


class ImageRequests(Sequence[ImageRequest]):
    """Several images of each prompt, made when they are asked for: a million takes no memory.

    Args:
        prompts: The prompts.
        images: Indices of the images of each prompt.
        seeds: Seed of each image, all images of the first entry first; None: that of the run.
    """

    def __init__(
        self,
        prompts: Sequence[EncodedPrompt],
        images: Sequence[int],
        seeds: Sequence[int] | None = None,
    ) -> None:
        self._prompts = prompts
        self._images = images
        self._seeds = seeds

    def __len__(self) -> int:
        return len(self._prompts) * len(self._images)

    @overload
    def __getitem__(self, place: int) -> ImageRequest: ...
    @overload
    def __getitem__(self, place: slice) -> list[ImageRequest]: ...
    def __getitem__(self, place: int | slice) -> ImageRequest | list[ImageRequest]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        number, image = divmod(range(len(self))[place], len(self._images))
        return self._request(self._prompts[number], image)

    def __iter__(self) -> Iterator[ImageRequest]:
        for prompt in self._prompts:
            for image in range(len(self._images)):
                yield self._request(prompt, image)

    def _request(self, encoded: EncodedPrompt, image: int) -> ImageRequest:
        prompt, input_ids, seed, negative = encoded
        if self._seeds is not None:
            seed = self._seeds[prompt.prompt_index * len(self._images) + image]
        return ImageRequest(prompt, self._images[image], input_ids, seed, negative)


class Selection(Sequence[Request]):
    """Some of the requests of a run.

    Args:
        requests: All of them.
        places: Which ones.
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


class QuestionRequest(NamedTuple):
    """One question to answer."""

    prompt: Prompt
    """The entry; its text is the question, its metadata the whole entry."""
    pictures: tuple[Picture, ...]
    names: tuple[str, ...]
    """The pictures as the entry names them."""
    input_ids: list[int]
    """Token ids of the prompt, with the image token at the places of the pictures."""

    @property
    def num_input_ids(self) -> int:
        """How many token ids its prompt has."""
        return len(self.input_ids)

    @property
    def own_settings(self) -> dict[str, Any]:
        """None."""
        return {}

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
    pictures: tuple[Picture, ...]
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
    def num_input_ids(self) -> int:
        """How many token ids its prompt has."""
        return len(self.input_ids)

    @property
    def own_settings(self) -> dict[str, Any]:
        """None."""
        return {}

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


def share(count: int, world_size: int, rank: int) -> range:
    """Return the places of the requests that a rank makes, of ``count``; there may be none."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)
