"""Calls of a pipeline that share batches, and the generations that result."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lit_dola.data.requests import ImageRequest
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import ModelFolder
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.pipeline.in_memory import PromptsInMemory
from lit_dola.reports.generation import Generation
from lit_dola.runs.records import RunSettings
from lit_dola.tasks.answer import Answers
from lit_dola.tasks.generate import GeneratedImages
from lit_dola.tasks.preview import ImageStep, OnImageStep
from lit_dola.tasks.rank import Rankings


@dataclass(frozen=True)
class ImageCall:
    """One of several calls that share their settings.

    Args:
        prompt: The prompt.
        images: Number of images.
        seed: Seed of their noise.
    """

    prompt: str
    images: int = 1
    seed: int = 0


class CallsInMemory(PromptsInMemory):
    """Images of several calls, each with the noise that it would have alone."""

    def __init__(
        self, calls: Sequence[ImageCall], model: ModelFolder, encoder: PromptEncoder
    ) -> None:
        super().__init__([call.prompt for call in calls], model, encoder)
        self.calls = calls
        self.call_of: list[int] = []
        """Number of the call of each request of the plan."""

    def setup(self, stage: str) -> None:
        """Encode the prompts, and plan the images of all calls.

        Raises:
            UserError: If a prompt is invalid.
        """
        super().setup(stage)
        requests = []
        for request in self.plan.requests:  # those of similar length next to each other
            assert isinstance(request, ImageRequest)
            if request.image_index > 0:
                continue
            number = request.entry.index
            call, entry = self.calls[number], replace(request.entry, index=0)
            requests += [
                replace(request, entry=entry, image_index=image, seed=call.seed)
                for image in range(call.images)
            ]
            self.call_of += [number] * call.images
        self.plan = replace(self.plan, requests=requests)

    def with_calls(self, callback: OnImageStep | None) -> OnImageStep | None:
        """Return a callback whose steps have the number of the call of each image."""
        if callback is None:
            return None

        def call(step: ImageStep) -> None:
            numbers = dict(zip(map(id, self.plan.requests), self.call_of))
            callback(replace(step, calls=[numbers[id(request)] for request in step.requests]))

        return call


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
    parts: Sequence[GeneratedImages], settings: RunSettings, calls: Sequence[int]
) -> list[Generation]:
    """Return the generation of each call, from the batches that they shared.

    Args:
        parts: The results of the predict steps.
        settings: Every setting that shaped them.
        calls: Number of the call of each image of all parts together.

    Raises:
        UserError: If an image could not be generated.
    """
    found: dict[int, dict[Any, Any]] = {call: {} for call in sorted({*calls})}
    images = [image for part in map(sound, parts) for image in part.images]
    for call, image in zip(calls, images):
        found[call][image.request.key] = image
    return [_generation([own[key] for key in sorted(own)], settings) for own in found.values()]


def _generation(images: list[Any], settings: RunSettings) -> Generation:
    made = Generation.of(images, settings)
    for image, record in zip(made.images, made.records):
        image.info["prompt"] = record.prompt
        image.info["parameters"] = json.dumps(record.provenance(), ensure_ascii=False)
    return made
