"""Answers to questions about pictures, with Janus' understanding path and DoLa-static."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from lit_dola.data.base import shards_the_model
from lit_dola.data.pictures import Picture, read_picture
from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure, QuestionRequest
from lit_dola.decoding.logit_bias import LogitBias
from lit_dola.decoding.loop import NotFiniteError, TokenGenerator
from lit_dola.decoding.pool import token_generator
from lit_dola.decoding.prefill import Branches
from lit_dola.errors import UserError
from lit_dola.janus.pixels import PixelProcessor
from lit_dola.janus.question import QuestionEncoder
from lit_dola.janus.understanding import UnderstandingJanus
from lit_dola.settings.checks import given_path
from lit_dola.settings.numbers import FiniteFloat, GuidanceScale, NonNegativeFinite
from lit_dola.tasks.decode import DecodingModule
from lit_dola.tasks.understand import UnderstandingModule


class Answer(NamedTuple):
    """One answer."""

    request: QuestionRequest
    text: str
    tokens: list[int]
    """Token ids, the end of the sentence included if it came."""
    at_once: int | None
    """Questions answered at once, if a batch was divided for lack of memory; else None."""
    logprobs: list[list[float]] | None = None
    """Log-probabilities of the tokens, as of :attr:`lit_dola.decoding.step.Drawn.logprobs`, if they
    were measured."""


class Answers(NamedTuple):
    """The result of one predict step."""

    answers: list[Answer]
    failures: list[Failure]


class LitAnswer(UnderstandingModule, DecodingModule):
    """Answers questions about pictures with Janus, its token distribution sharpened by DoLa-static.

    Args:
        max_new_tokens: Maximum number of tokens per answer.
        questions_per_batch: Questions per batch. auto: as many as the GPU's memory allows, at most
            128 rows, of which a question uses one, with guidance two; 32 rows on a CPU.
        cfg_weight: Guidance scale. Above 1, a second branch sees pad tokens in place of the
            pictures, and what the pictures add to the evidence for a token counts ``cfg_weight``
            times; 1 is no guidance.
        prior: JSON file of texts and their log biases, added to the scores of each text's first
            token, e.g. {" yes": 0.5}.
        prior_weight: Multiplies the log biases.
        temperature: Divides the scores before a token is drawn; 0 is greedy.
        settings: Settings of :class:`UnderstandingModule` and :class:`DecodingModule`.
    """

    head_name = "text"
    batch_setting = "questions_per_batch"
    items = "questions"
    shared = (
        *UnderstandingModule.shared, *DecodingModule.shared, "max_new_tokens", "questions_per_batch"
    )  # fmt: skip
    rounding = ("questions_per_batch", "compile")

    def __init__(
        self,
        *,
        max_new_tokens: PositiveInt = 512,
        questions_per_batch: PositiveInt | Literal["auto"] = "auto",
        cfg_weight: GuidanceScale = 1.0,
        prior: str | None = None,
        prior_weight: FiniteFloat = 1.0,
        temperature: NonNegativeFinite = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(cfg_weight=cfg_weight, temperature=temperature, **settings)
        self.prior_path = None if prior is None else given_path("model.prior", prior)
        self.prior_weight = prior_weight
        self.answer_length: int = max_new_tokens

    def setup(self, stage: str) -> None:
        """Check the settings, and read the prior, before anything is loaded."""
        super().setup(stage)
        self.biases = None
        if self.prior is not None:
            vocab_size = int(self.plan.checkpoint.config.text_config.vocab_size)
            biases = self.prior.token_biases(self.encoder.encode_text, vocab_size)
            self.biases = self.prior_weight * biases

    @cached_property
    def prior(self) -> LogitBias | None:
        """The log biases of the setting ``prior``, read once."""
        return None if self.prior_path is None else LogitBias.read(self.prior_path)

    def record_settings(self, plan: RunPlan, precision: str) -> dict[str, Any]:
        """Return every setting that shapes an answer; of the prior, what it holds."""
        settings = super().record_settings(plan, precision)
        if self.prior is not None:
            settings["prior"] = self.prior.digest
        return settings

    @property
    def branches(self) -> int:
        """Rows per question; without guidance the head set is that of the only branch."""
        return 1 if self.scoring.cfg_weight == 1 else 2

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of tokens per answer."""
        return self.answer_length

    @property
    def encoder(self) -> QuestionEncoder:
        """The tokenizer of the run."""
        encoder = self.plan.encoder
        assert isinstance(encoder, QuestionEncoder)
        return encoder

    @property
    def refills(self) -> bool:
        """Return whether answers end at their own length; ranks that share a model go in step."""
        return not shards_the_model(self.trainer)

    def make_generator(self) -> TokenGenerator:
        """Return the token loop of the text head."""
        return token_generator(
            self.janus,
            self.janus.text_head,
            self.scoring,
            places=self.places,
            stop_ids=[self.encoder.eos_token_id] if self.refills else [],
            prior=None if self.biases is None else self.biases.to(self.device),
            **self.generator_options(),
        )

    def trial_prompt(self) -> Branches:
        """Return the first question without its pictures."""
        given = self.plan.requests[0].input_ids
        ids = [token for token in given if token != self.encoder.image_token_id]
        return (ids, ids)[: self.branches]

    def predict_step(self, batch: list[QuestionRequest], batch_idx: int) -> Answers:
        """Answer a batch of questions, as many at once as fit into memory."""
        parts = self.run_in_parts(batch, self._answer)
        return Answers(
            [answer for part in parts for answer in part.answers],
            [failure for part in parts for failure in part.failures],
        )

    def _answer(self, requests: list[QuestionRequest]) -> Answers:
        """Answer a few questions; those with broken pictures or infinite logits become failures."""
        pictures = _Pictures(self.janus, self.pixels)
        prompts: list[Branches] = []
        sound: list[QuestionRequest] = []
        failures: list[Failure] = []
        for request in requests:
            try:
                prompts.append(self._branches(request, pictures))
                sound.append(request)
            except UserError as error:
                failures.append(Failure.of(request, str(error)))
        if not sound:
            return Answers([], failures)
        keys = [request.key for request in sound]
        steps: dict[int, int] = {}
        try:
            with self.inference_mode():
                tokens = self.generator(
                    prompts, keys, lambda step, _: self.call_on_step(step), pictures.embeddings()
                )
        except NotFiniteError as error:
            tokens, steps = error.tokens, error.steps
        self.call_on_step(self.max_new_tokens)
        logprobs = self.generator.logprobs
        answers = []
        for place, (request, row) in enumerate(zip(sound, tokens.tolist())):
            if place in steps:
                reason = f"the model's logits are NaN or infinite at step {steps[place]}"
                failures.append(Failure.of(request, reason))
                continue
            ids = _until(row, self.encoder.eos_token_id)
            text = self.encoder.decode(ids).strip()
            own = None if logprobs is None else logprobs[:, place, : len(ids)].tolist()
            answers.append(Answer(request, text, ids, self.at_once, own))
        return Answers(answers, failures)

    def _branches(self, request: QuestionRequest, pictures: "_Pictures") -> Branches:
        """Return the branches of a question, with its pictures in place of their tokens."""
        image_token_id = self.encoder.image_token_id
        rows = iter([row for it in request.pictures for row in pictures.rows(it)])
        seen = [next(rows) if token == image_token_id else token for token in request.input_ids]
        if self.branches == 1:
            return (seen,)
        pad = self.janus.pad_token_id
        return seen, [pad if token == image_token_id else token for token in request.input_ids]


class _Pictures:
    """The pictures of a batch, each embedded once."""

    def __init__(self, janus: UnderstandingJanus, pixels: PixelProcessor) -> None:
        self.janus, self.pixels = janus, pixels
        self.found: dict[Picture, Sequence[int]] = {}
        self.parts: list[Tensor] = []

    def rows(self, picture: Picture) -> Sequence[int]:
        """Return the token ids that stand for a picture's embeddings."""
        if picture not in self.found:
            image = read_picture(picture, self.pixels.background)
            embeddings = self.janus.embed_picture(self.pixels(image))
            first = sum(map(len, self.parts))
            self.found[picture] = [-1 - row for row in range(first, first + len(embeddings))]
            self.parts.append(embeddings)
        return self.found[picture]

    def embeddings(self) -> Tensor:
        """Return the embeddings of all pictures, ``(rows, hidden)``."""
        return torch.cat(self.parts)


def _until(ids: list[int], stop: int) -> list[int]:
    """Return ids up to the first stop token, that one included."""
    return ids[: ids.index(stop) + 1] if stop in ids else ids
