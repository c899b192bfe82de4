"""The LightningDataModule of ``answer``: reads questions about pictures."""

from functools import cached_property
from typing import Literal

from jsonargparse.typing import PositiveInt

from lit_dola.data.base import RequestDataModule
from lit_dola.data.datamodule import note_roles
from lit_dola.data.plan import RunPlan
from lit_dola.data.question_file import Question, read_questions
from lit_dola.data.requests import Failure, OnError, QuestionRequest
from lit_dola.errors import UserError, given_path
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.question import SYSTEM_PROMPT, QuestionEncoder
from lit_dola.janus.tokenizer import Roles


def question_encoder(
    checkpoint: Checkpoint, roles: Roles, system_prompt: str, note: bool
) -> QuestionEncoder:
    """Return the tokenizer of a checkpoint for questions about pictures.

    Args:
        checkpoint: The checkpoint.
        roles: Role names of the conversation template.
        system_prompt: What the conversation starts with.
        note: Whether to log which roles ``auto`` has guessed.

    Raises:
        UserError: As :class:`lit_dola.janus.question.QuestionEncoder`.
    """
    encoder = QuestionEncoder(
        checkpoint.folder,
        checkpoint.num_image_tokens,
        roles,
        checkpoint.name,
        int(checkpoint.config.text_config.vocab_size),
        system_prompt,
    )
    if note:
        note_roles(encoder)
    return encoder


class QuestionDataModule(RequestDataModule):
    """Reads questions about pictures, and batches them.

    Args:
        question_json: Question file: JSON (a list of objects) or JSON Lines, whatever its suffix.
            Each entry has ``image``, a path or a list of paths, and ``question``, ``text`` or
            ``prompt``; everything else is kept.
        image_dir: What paths of pictures are relative to; null: the question file's folder.
        model_path: Checkpoint whose tokenizer encodes the questions and whose context limits them.
        roles: Role names of the conversation template.
        system_prompt: What the conversation starts with.
        max_new_tokens: Tokens that an answer may have.
        questions_per_batch: Questions per batch; auto: as many as the model's memory allows.
        on_error: What to do with a bad entry or a broken picture: stop, or skip it, list it in
            ``errors.jsonl`` and continue with the others.
    """

    def __init__(
        self,
        question_json: str = "questions.json",
        image_dir: str | None = None,
        model_path: str = "deepseek-ai/Janus-Pro-7B",
        roles: Roles = "auto",
        system_prompt: str = SYSTEM_PROMPT,
        max_new_tokens: PositiveInt = 512,
        questions_per_batch: PositiveInt | Literal["auto"] = "auto",
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(model_path, questions_per_batch, on_error)
        self.question_json = given_path("data.question_json", question_json)
        self.image_dir = None if image_dir is None else given_path("data.image_dir", image_dir)
        self.roles = roles
        self.system_prompt = system_prompt
        self.max_new_tokens = max_new_tokens

    @cached_property
    def encoder(self) -> QuestionEncoder:
        """The checkpoint's tokenizer, read once."""
        return question_encoder(self.checkpoint, self.roles, self.system_prompt, self.is_first)

    def setup(self, stage: str) -> None:
        """Read and encode every question, and look at every picture's header.

        Raises:
            UserError: If the question file is unusable, a picture is missing, or a question is too
                long.
        """
        failures: list[Failure] = []
        skipped = failures if self.on_error == "skip" else None
        requests: list[QuestionRequest] = []
        for question in self.read_questions(skipped):
            try:
                input_ids = self._encode(question)
            except UserError as error:
                index, text, _ = question.prompt
                reason = f"entry {index}: {error}"
                if skipped is None:
                    raise UserError(f"{self.question_json}: {reason}") from error
                skipped.append(Failure(index, None, text, reason))
                continue
            requests.append(QuestionRequest(*question, input_ids))
        self.plan = RunPlan(
            self.question_json,
            self.on_error,
            self.checkpoint,
            self.encoder,
            requests,
            failures,
            batch_size=None if self.batch_size == "auto" else self.batch_size,
        )

    def read_questions(self, skipped: list[Failure] | None) -> list[Question]:
        """Read the questions; bad entries go to ``skipped``, or are an error if it is None."""
        return read_questions(self.question_json, self.image_dir, skipped)

    def _encode(self, question: Question) -> list[int]:
        ids = self.encoder.encode_question(question.prompt.text, len(question.pictures))
        context, answer = self.checkpoint.context_length, self.max_new_tokens
        if len(ids) > context - answer:
            raise UserError(
                f"question has {len(ids)} tokens, {len(question.pictures)} pictures included;"
                f" expected at most {context - answer} (the model's context of {context} minus"
                f" model.max_new_tokens {answer})"
            )
        return ids
