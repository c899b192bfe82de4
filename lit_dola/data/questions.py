"""The data module of ``answer``: reads questions about pictures."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from lit_dola.data.base import BadEntries, RequestDataModule
from lit_dola.data.prompts import note_roles
from lit_dola.data.question_file import Question, read_questions
from lit_dola.data.requests import Failure, OnError, QuestionRequest
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.question import QuestionEncoder
from lit_dola.settings.checks import given_path
from lit_dola.settings.texts import check_unicode


def question_encoder(
    checkpoint: Checkpoint, settings: Mapping[str, Any], note: bool
) -> QuestionEncoder:
    """Return the tokenizer of a checkpoint for questions about pictures.

    Args:
        checkpoint: The checkpoint.
        settings: Settings of the model: ``roles`` and ``system_prompt``.
        note: Log which roles ``auto`` has guessed.
    """
    check_unicode("model.system_prompt", settings["system_prompt"])
    encoder = QuestionEncoder(
        checkpoint.folder,
        checkpoint.num_image_tokens,
        settings["roles"],
        checkpoint.name,
        int(checkpoint.config.text_config.vocab_size),
        settings["system_prompt"],
    )
    if note:
        note_roles(encoder)
    return encoder


class QuestionDataModule(RequestDataModule):
    """Reads questions about pictures, and batches them.

    Args:
        question_json: Question file: JSON (a list of objects) or JSON Lines, whatever its suffix,
            or a table. Each entry has ``image``, a path or a list of paths, and ``question``,
            ``text`` or ``prompt``; everything else is kept. Also the files of VQAv2, GQA,
            SEED-Bench, MM-Vet, MMBench and LLaVA, and the folder of MME.
        image_dir: Folder that paths of pictures are relative to; null: the question file's folder.
        on_error: Stop at a bad entry or a broken picture, or skip it, list it in ``errors.jsonl``
            and continue with the others.
    """

    def __init__(
        self,
        question_json: str = "questions.json",
        image_dir: str | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__("questions_per_batch", on_error)
        self.question_json = given_path("data.question_json", question_json)
        self.image_dir = None if image_dir is None else given_path("data.image_dir", image_dir)

    @cached_property
    def encoder(self) -> QuestionEncoder:
        """The checkpoint's tokenizer, read once."""
        return question_encoder(self.checkpoint, self.settings, self.is_first)

    def setup(self, stage: str) -> None:
        """Read and encode every question, and check every picture's header."""
        bad = BadEntries(self.on_error)
        requests: list[QuestionRequest] = []
        for question in self.read_questions(bad.skipped):
            try:
                requests.append(
                    QuestionRequest(
                        question.entry, self._encode(question), question.pictures, question.names
                    )
                )
            except UserError as error:
                bad.add(question.entry, error, self.question_json)
        self.plan = self.make_plan(
            self.question_json, requests, tokenizer=self.encoder, failures=bad.found
        )

    def read_questions(self, skipped: list[Failure] | None) -> list[Question]:
        """Read the questions; bad entries go to ``skipped``, or are an error if it is None."""
        return read_questions(self.question_json, self.image_dir, skipped)

    def _encode(self, question: Question) -> list[int]:
        ids = self.encoder.encode_question(question.entry.text, len(question.pictures))
        context, answer = self.checkpoint.context_length, self.settings["max_new_tokens"]
        if len(ids) > context - answer:
            raise UserError(
                f"question has {len(ids)} tokens, {len(question.pictures)} pictures included",
                f"at most {context - answer} (the model's context of {context} minus"
                f" model.max_new_tokens {answer})",
                mentions=("model.max_new_tokens",),
            )
        return ids
