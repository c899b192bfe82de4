"""Calls of a pipeline that share batches, and what the batches become."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch

from lit_dola.data.requests import ImageRequest
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.janus.vq import to_pillow
from lit_dola.pipeline.given import GivenPrompts
from lit_dola.reports.generation import Generation
from lit_dola.reports.made import image_record
from lit_dola.tasks.answer import Answers
from lit_dola.tasks.generate import GeneratedImages, LitDoLa
from lit_dola.tasks.rank import Rankings


class ImageCall(NamedTuple):
    """One of several calls that share their settings."""

    prompt: str
    images: int = 1
    """How many."""
    seed: int = 0


class GivenCalls(GivenPrompts):
    """Images of several calls, each with the noise that it would have alone.

    Args:
        calls: The calls.
        model: The task, with the settings that they share.
        checkpoint: The checkpoint of its model.
        encoder: The tokenizer.
    """

    def __init__(
        self,
        calls: Sequence[ImageCall],
        model: LitDoLa,
        checkpoint: Checkpoint,
        encoder: PromptEncoder,
    ) -> None:
        super().__init__([call.prompt for call in calls], model, checkpoint, encoder, None)
        self.calls = calls
        self.call_of: list[int] = []
        """Which call each request of the plan belongs to."""

    def setup(self, stage: str) -> None:
        """Encode the prompts, and plan the images of all calls.

        Raises:
            UserError: If a prompt is invalid.
        """
        super().setup(stage)
        of_all = [(request.prompt.prompt_index, request) for request in self._one_per_call()]
        requests = [
            request._replace(
                prompt=request.prompt._replace(prompt_index=0),
                image_index=image,
                seed=self.calls[call].seed,
            )
            for call, request in of_all
            for image in range(self.calls[call].images)
        ]
        self.call_of = [call for call, _ in of_all for _ in range(self.calls[call].images)]
        self.plan = replace(self.plan, requests=requests)

    def _one_per_call(self) -> Iterator[ImageRequest]:
        """Yield a request of each call, those of similar length next to each other."""
        for request in self.plan.requests:
            assert isinstance(request, ImageRequest)
            if request.image_index == 0:
                yield request


Part = TypeVar("Part", GeneratedImages, Answers, Rankings)


def sound(part: Part) -> Part:
    """Return the results of a predict step if none has failed.

    Raises:
        UserError: If one has.
    """
    if part.failures:
        raise UserError(part.failures[0].reason)
    return part


def generations_of(
    parts: Sequence[GeneratedImages], settings: dict[str, Any], calls: Sequence[int]
) -> list[Generation]:
    """Return what each call has made, from the batches that they shared.

    Args:
        parts: The results of the predict steps.
        settings: Every setting that shaped them, and the versions of the packages.
        calls: Which call each image of all parts together belongs to.

    Raises:
        UserError: If an image could not be made.
    """
    made: dict[int, dict[Any, Any]] = {call: {} for call in sorted({*calls})}
    call_of = iter(calls)
    for part in map(sound, parts):
        for place, request in enumerate(part.requests):
            made[next(call_of)][request.key] = _image(part, place, settings)
    return [_generation(images) for images in made.values()]


def _image(part: GeneratedImages, place: int, settings: dict[str, Any]) -> tuple[Any, ...]:
    """Return an image, its tokens, its record and its inspection."""
    record = image_record(part, place, settings)
    image = to_pillow(part.pixels[place])
    image.info["prompt"] = record.prompt
    image.info["parameters"] = json.dumps(record.provenance(), ensure_ascii=False)
    return image, part.tokens[place], record, part.inspections.get(place)


def _generation(found: dict[Any, Any]) -> Generation:
    """Order images by prompt and index, whatever batches they were made in."""
    images, tokens, records, inspections = zip(*(found[key] for key in sorted(found)))
    return Generation(
        [*images], torch.stack(tokens), [*records], [it for it in inspections if it is not None]
    )
