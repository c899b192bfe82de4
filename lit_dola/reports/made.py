"""The records of what the tasks have made, for a run's folder and for Python alike."""

from collections.abc import Callable
from typing import Any

from lit_dola.data.pictures import Picture
from lit_dola.runs.answers import AnswerRecord
from lit_dola.runs.ranks import RankRecord
from lit_dola.runs.records import ImageRecord
from lit_dola.tasks.answer import Answer
from lit_dola.tasks.generate import GeneratedImages
from lit_dola.tasks.rank import Ranking

NameOf = Callable[[Picture], str]
"""Names a picture in a record."""


def image_record(
    images: GeneratedImages, place: int, settings: dict[str, Any], file: str = ""
) -> ImageRecord:
    """Return the record of one of the images that a predict step has made.

    Args:
        images: The images.
        place: Which one.
        settings: Every setting that shaped them, and the versions of the packages.
        file: Path of the image, relative to the run's folder.
    """
    request = images.requests[place]
    if own := request.own_settings:
        settings = {**settings, **own}
    return ImageRecord(
        file,
        request.prompt.text,
        *request.key,
        settings,
        request.prompt.metadata,
        forwards=images.forwards[place],
        at_once=images.at_once[place],
    )


def answer_record(answer: Answer, settings: dict[str, Any], name_of: NameOf) -> AnswerRecord:
    """Return the record of an answer; arguments as :func:`image_record` and :data:`NameOf`."""
    prompt = answer.request.prompt
    return AnswerRecord(
        prompt.prompt_index,
        prompt.metadata,
        [*map(name_of, answer.request.pictures)],
        answer.text,
        answer.tokens,
        settings,
        answer.at_once,
    )


def rank_record(ranking: Ranking, settings: dict[str, Any], name_of: NameOf) -> RankRecord:
    """Return the record of a ranking; arguments as :func:`answer_record`."""
    request, scores, order = ranking
    return RankRecord(
        request.prompt.prompt_index,
        request.prompt.metadata,
        [*map(name_of, request.pictures)],
        [*request.labels],
        scores,
        order,
        settings,
    )
