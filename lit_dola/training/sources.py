"""Sequences to train lenses on: images and answers of finished runs, and pictures with captions."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from lit_dola.data.entry_file import kind_of, read_entries
from lit_dola.data.pictures import Picture, read_picture
from lit_dola.data.prompt_file import prompt_maker
from lit_dola.data.question_file import CheckedPictures
from lit_dola.data.questions import question_encoder
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.pixels import PixelProcessor
from lit_dola.janus.question import QuestionEncoder
from lit_dola.janus.tokenizer import PromptEncoder, Roles
from lit_dola.janus.vq import from_pillow
from lit_dola.runs.answers import AnswerRecord
from lit_dola.runs.image_file import find_tokens, read_token_arrays, tokens_file
from lit_dola.runs.records import ImageRecord, RunRecord

Record = TypeVar("Record", bound=RunRecord)


class LensSequence(NamedTuple):
    """A prompt, and the tokens that follow it."""

    input_ids: list[int]
    """Token ids; -1 - i stands for the i-th embedding of its pictures."""
    tokens: Tensor | None
    """Int64 ``(tokens,)``; None: those of the only picture, by the VQ encoder."""
    pixels: tuple[Tensor, ...] = ()
    """Pictures, ``(3, height, width)``, as the vision tower or the VQ encoder takes them."""


Reader = Callable[[], LensSequence]
"""Reads a sequence when it is needed."""
Sources = Iterator[tuple[str, Reader]]
"""Readers, each with its group: those of one group are held out together."""


def images_of_run(run: Path, checkpoint: Checkpoint, encoder: PromptEncoder) -> Sources:
    """Yield the images of a run of predict, by their prompts.

    Raises:
        UserError: If there are none, or they are of another checkpoint or without tokens.
    """
    for record in _records_of(run, ImageRecord, checkpoint):
        path = find_tokens(run, file := record.file_name)
        if path is None:
            raise UserError(
                f"{run}: {Path(tokens_file(file)).name} of {file} not found",
                "a run with --writer.save_tokens true",
                setting="data.runs",
                mentions=("writer.save_tokens",),
            )
        yield record.prompt, partial(_read_image, record.prompt, path, checkpoint, encoder)


def answers_of_run(run: Path, checkpoint: Checkpoint, roles: Roles) -> Sources:
    """Yield the answers of a run of answer, by their pictures.

    Args:
        run: Folder of the run.
        checkpoint: The checkpoint.
        roles: Role names of the conversation template.

    Raises:
        UserError: If there are none, or they are of another checkpoint, or a picture is missing.
    """
    checked, encoder, processor = CheckedPictures(run), None, None
    for record in _records_of(run, AnswerRecord, checkpoint):
        if encoder is None or processor is None:
            encoder = question_encoder(checkpoint, {**record.settings, "roles": roles}, note=False)
            processor = PixelProcessor.of_checkpoint(checkpoint, record.settings["preprocess"])
        pictures = checked.paths(record.pictures)
        yield " ".join(record.pictures), partial(_read_answer, record, pictures, encoder, processor)


def captioned_pictures(
    path: Path, image_dir: Path | None, checkpoint: Checkpoint, encoder: PromptEncoder
) -> Sources:
    """Yield pictures with captions, by their captions.

    Args:
        path: A file of entries with ``image``, a path, and ``prompt``, ``text`` or ``caption``.
        image_dir: Folder that paths of pictures are relative to; None: the file's own folder.
        checkpoint: The checkpoint.
        encoder: Its tokenizer.

    Raises:
        UserError: If the file cannot be read, or an entry is another.
    """
    checked = CheckedPictures(path.parent if image_dir is None else image_dir)
    prompt_of = prompt_maker()

    def make(index: int, entry: Any) -> tuple[str, Picture]:
        if not isinstance(entry, dict):
            raise UserError(f"found {kind_of(entry)}", "an object with image and prompt")
        _, (picture,), _ = checked.of_one(entry)
        return prompt_of(index, entry).text, picture

    for prompt, picture in read_entries(path, make, pictures=True):
        yield prompt, partial(_read_captioned, prompt, picture, checkpoint, encoder)


def _records_of(run: Path, kind: type[Record], checkpoint: Checkpoint) -> Iterator[Record]:
    """Yield the records of a run, which must be those of a checkpoint."""
    found = False
    for record in kind.read(run):
        if record.settings.get("checkpoint") != checkpoint.fingerprint:
            raise UserError(
                f"{run}: {kind.results} of another checkpoint", f"those of {checkpoint.name}",
                setting="data.runs",
            )  # fmt: skip
        found = True
        yield record
    if not found:
        raise UserError(
            f"{run}: no {kind.results}", f"the folder of a run with {kind.results}",
            setting="data.runs",
        )  # fmt: skip


def _read_image(
    prompt: str, path: Path, checkpoint: Checkpoint, encoder: PromptEncoder
) -> LensSequence:
    tokens = read_token_arrays(path)["tokens"]
    if tokens.shape != (checkpoint.num_image_tokens,):
        raise UserError(
            f"tokens of shape {tokens.shape}", f"({checkpoint.num_image_tokens},)", at=path
        )
    return LensSequence(encoder.encode(prompt), torch.from_numpy(tokens).long())


def _read_answer(
    record: AnswerRecord,
    pictures: tuple[Path, ...],
    encoder: QuestionEncoder,
    processor: PixelProcessor,
) -> LensSequence:
    places = itertools.count(-1, -1)
    ids = [
        next(places) if token == encoder.image_token_id else token
        for token in encoder.encode_question(record.question, len(pictures))
    ]
    pixels = tuple(processor(read_picture(it, processor.background)) for it in pictures)
    return LensSequence(ids, torch.tensor(record.tokens), pixels)


def _read_captioned(
    prompt: str, picture: Picture, checkpoint: Checkpoint, encoder: PromptEncoder
) -> LensSequence:
    pixels = from_pillow(read_picture(picture), checkpoint.image_side)
    return LensSequence(encoder.encode(prompt), None, (pixels,))
