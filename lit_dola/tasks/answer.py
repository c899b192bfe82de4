"""Answers to questions about pictures, with Janus' understanding path and DoLa-static."""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch import Tensor

from lit_dola.data.base import shards_the_model
from lit_dola.data.pictures import Picture, read_picture
from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure, QuestionRequest
from lit_dola.decoding.guidance import ApcPolicy
from lit_dola.decoding.loop import NotFiniteError, TokenGenerator
from lit_dola.decoding.prefill import Branches
from lit_dola.errors import UserError, given_path
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import load_understanding
from lit_dola.janus.pixels import PixelProcessor, Preprocess
from lit_dola.janus.quantization import Quantization
from lit_dola.janus.question import SYSTEM_PROMPT, QuestionEncoder
from lit_dola.janus.tokenizer import Roles
from lit_dola.janus.understanding import UnderstandingJanus
from lit_dola.tasks.base import JanusModule
from lit_dola.tasks.numbers import Finite, Fraction, Number, PositiveFinite, Seed
from lit_dola.tasks.prior import Prior


class Answer(NamedTuple):
    """One answer."""

    request: QuestionRequest
    text: str
    tokens: list[int]
    """Token ids, the end of the sentence included if it came."""
    at_once: int | None
    """Questions answered at once, if a batch was divided for want of memory; else None."""


class Answers(NamedTuple):
    """The result of one predict step."""

    answers: list[Answer]
    failures: list[Failure]


class LitAnswer(JanusModule):
    """Answers questions about pictures with Janus, its token distribution sharpened by DoLa-static.

    Args:
        model_path: Checkpoint: a local folder, a name on the Hugging Face hub, or one of
            Janus-1.3B, Janus-Pro-1B, Janus-Pro-7B. DeepSeek's layout and transformers' both load.
        dola: Whether to use DoLa; without it every step is exactly Janus' own.
        alpha: Threshold of the head set (DoLa's relative top): tokens with at least ``alpha`` times
            the probability of the most probable token may be drawn; 0: every token may be.
        strength: How much of the middle layer is subtracted: 1 is DoLa, 0 leaves the baseline's
            distribution on the head set; with alpha 0, too, it is the baseline itself.
        layer_ratio: Relative depth of the middle layer (DoLa's premature layer) that the final
            layer is contrasted with.
        layer: Index of the middle layer in ``hidden_states`` (0 is the embedding); overrides
            ``layer_ratio``.
        mid_norm: Whether to apply the model's final norm to the middle layer first, as a logit lens
            does; DoLa itself does not.
        apc: Which tokens may be drawn with guidance when the head sets of the two branches differ:
            cond, intersection, union, or per_branch.
        cfg_weight: Guidance scale. Above 1, a second branch sees pad tokens in place of the
            pictures, and what the pictures add to the evidence for a token counts ``cfg_weight``
            times; 1 is no guidance.
        prior: JSON file of texts and their log biases, added to the scores of each text's first
            token, as {" yes": 0.5}.
        prior_weight: Multiplies the log biases.
        temperature: Divides the scores before a token is drawn; 0 is greedy.
        top_k: Draw from the k most probable tokens only.
        top_p: Draw from the smallest set of most probable tokens with at least this mass.
        min_p: Draw from tokens with at least this share of the top probability (min-p sampling),
            after guidance and temperature.
        entropy_temperature: ``[span, scale, floor]``: multiplies the temperature by
            ``span * exp(-entropy / scale) + floor``, with the entropy of the scores in nats.
        max_new_tokens: Tokens per answer, at most.
        preprocess: Whose rounding when pictures are scaled: deepseek's or transformers'.
        system_prompt: What the conversation starts with; empty: nothing.
        questions_per_batch: Questions per batch. auto: as many as the GPU's memory allows, at most
            64; 16 on a CPU.
        seed: A drawn answer depends only on the seed and its question's index in the file.
        roles: Role names in the conversation: pro (<|User|>), base (User), or auto: from the
            checkpoint's chat template, else from the checkpoint's name.
        compile: Whether to compile the decoding step, with CUDA graphs on a GPU; auto: on a GPU.
        quantize: Store the weights of the language model and the text head in fewer bits, using
            torchao: int8wo, int4wo or float8wo.
    """

    batch_setting = "questions_per_batch"
    items = "questions"
    shared = (
        *JanusModule.shared, "system_prompt", "preprocess", "max_new_tokens", "questions_per_batch",
    )  # fmt: skip
    janus: UnderstandingJanus

    def __init__(
        self,
        model_path: str = "deepseek-ai/Janus-Pro-7B",
        dola: bool = True,
        alpha: ClosedUnitInterval = 0.1,
        strength: ClosedUnitInterval = 1.0,
        layer_ratio: ClosedUnitInterval = 0.8,
        layer: PositiveInt | None = None,
        mid_norm: bool = False,
        apc: ApcPolicy = "cond",
        cfg_weight: Finite = 1.0,
        prior: str | None = None,
        prior_weight: Number = 1.0,
        temperature: Finite = 0.0,
        top_k: PositiveInt | None = None,
        top_p: Fraction | None = None,
        min_p: Fraction | None = None,
        entropy_temperature: tuple[Finite, PositiveFinite, Finite] | None = None,
        max_new_tokens: PositiveInt = 512,
        preprocess: Preprocess = "deepseek",
        system_prompt: str = SYSTEM_PROMPT,
        questions_per_batch: PositiveInt | Literal["auto"] = "auto",
        seed: Seed = 0,
        roles: Roles = "auto",
        compile: bool | Literal["auto"] = "auto",
        quantize: Quantization | None = None,
    ) -> None:
        super().__init__(
            model_path,
            dola=dola,
            layer_ratio=layer_ratio,
            layer=layer,
            compile=compile,
            quantize=quantize,
        )
        self.save_hyperparameters()
        self.prior_path = None if prior is None else given_path("model.prior", prior)
        self.prior_weight = prior_weight
        self.answer_length: int = max_new_tokens
        self.preprocess = preprocess
        self.scoring = self.make_scoring()

    def setup(self, stage: str) -> None:
        """Check the settings, and read the prior, before anything is loaded.

        Raises:
            UserError: If they do not fit, or the prior is unusable.
        """
        super().setup(stage)
        checkpoint = self.plan.checkpoint
        self.pixels = PixelProcessor.of_checkpoint(checkpoint, self.preprocess)
        self.biases = None
        if self.prior is not None:
            vocab_size = int(checkpoint.config.text_config.vocab_size)
            biases = self.prior.token_biases(self.encoder.encode_text, vocab_size)
            self.biases = self.prior_weight * biases

    @cached_property
    def prior(self) -> Prior | None:
        """The prior, read once."""
        return None if self.prior_path is None else Prior.read(self.prior_path)

    def record_settings(self, plan: RunPlan, precision: str) -> dict[str, Any]:
        """Return every setting that shapes an answer; of the prior, what it holds.

        Raises:
            UserError: If the model has no such layer, or the prior is unusable.
        """
        settings = super().record_settings(plan, precision)
        if self.prior is not None:
            settings["prior"] = self.prior.digest
        return settings

    def load(self, checkpoint: Checkpoint, **how: Any) -> UnderstandingJanus:
        """Load the vision tower, the aligner, the language model and the text head.

        Raises:
            UserError: If they cannot be loaded.
        """
        return load_understanding(checkpoint, **how)

    @property
    def max_new_tokens(self) -> int:
        """Tokens per answer, at most."""
        return self.answer_length

    @property
    def encoder(self) -> QuestionEncoder:
        """The tokenizer of the run."""
        encoder = self.plan.encoder
        assert isinstance(encoder, QuestionEncoder)
        return encoder

    def make_generator(self) -> TokenGenerator:
        """Return the token loop of the text head."""
        return TokenGenerator(
            self.janus,
            self.janus.text_head,
            self.scoring,
            layer=self.middle_layer(self.plan.checkpoint),
            max_new_tokens=self.max_new_tokens,
            stop_ids=[self.encoder.eos_token_id],
            max_prompt_length=self.plan.longest_prompt,
            compile=self.compiles,
            share_prefill=not shards_the_model(self.trainer),
            fill_to=self.fill_to,
            prior=None if self.biases is None else self.biases.to(self.device),
        )

    def predict_step(self, batch: list[QuestionRequest], batch_idx: int) -> Answers:
        """Answer a batch of questions, as many at once as fit into memory.

        Raises:
            UserError: If a single question does not fit.
        """
        parts = self.run_in_parts(batch, self._answer)
        return Answers(
            [*chain(*(part.answers for part in parts))],
            [*chain(*(part.failures for part in parts))],
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
        mode = torch.is_inference_mode_enabled() and not shards_the_model(self.trainer)
        keys = [request.key for request in sound]
        steps: dict[int, int] = {}
        try:
            with torch.inference_mode(mode):
                tokens = self.generator(
                    prompts, keys, lambda step, _: self.call_on_step(step), pictures.embeddings()
                )
        except NotFiniteError as error:
            tokens, steps = error.tokens, error.steps
        self.call_on_step(self.max_new_tokens)
        answers = []
        for place, (request, row) in enumerate(zip(sound, tokens.tolist())):
            if place in steps:
                reason = f"the model's logits are NaN or infinite at step {steps[place]}"
                failures.append(Failure.of(request, reason))
                continue
            ids = _until(row, self.encoder.eos_token_id)
            text = self.encoder.decode(ids).strip()
            answers.append(Answer(request, text, ids, self.at_once))
        return Answers(answers, failures)

    def _branches(self, request: QuestionRequest, pictures: "_Pictures") -> Branches:
        """Return the branches of a question, with its pictures in place of their tokens.

        Raises:
            UserError: If a picture is broken.
        """
        image_token_id = self.encoder.image_token_id
        rows = iter([row for it in request.pictures for row in pictures.rows(it)])
        seen = [next(rows) if token == image_token_id else token for token in request.input_ids]
        if self.scoring.cfg_weight == 1:
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
        """Return the token ids that stand for a picture's embeddings.

        Raises:
            UserError: If it is broken.
        """
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
