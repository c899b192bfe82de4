"""Ranking labels for a picture, or pictures for a text, with DoLa-static on three scorers."""

import math
from typing import Any, NamedTuple, Self

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch import Tensor

from lit_dola.data.items import RankScorer
from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure, RankRequest
from lit_dola.decoding.guidance import Scoring
from lit_dola.decoding.likelihood import TextScorer
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint, ModelFolder
from lit_dola.janus.loading import load_understanding
from lit_dola.janus.packing import pack_weights
from lit_dola.janus.pixels import PixelProcessor, Preprocess
from lit_dola.janus.quantization import Quantization
from lit_dola.janus.question import SYSTEM_PROMPT, QuestionEncoder
from lit_dola.janus.siglip import Siglip, SiglipCheckpoint
from lit_dola.janus.tokenizer import Roles
from lit_dola.janus.understanding import UnderstandingJanus
from lit_dola.tasks.base import JanusModule
from lit_dola.tasks.judges import (
    Judge,
    LikelihoodJudge,
    SiglipJudge,
    YesNoJudge,
    check_question,
)

QUESTIONS = {"likelihood": "What is in the image?", "yes_no": "Does this image show {label}?"}
"""What Janus is asked, by scorer, unless ``model.question`` says something else."""


class Ranking(NamedTuple):
    """The scores of one request."""

    request: RankRequest
    scores: list[float | None]
    """One per candidate; None: outside the head set."""
    order: list[int]
    """Places of the candidates, best first; equal ones in their own order, masked ones last."""


class Rankings(NamedTuple):
    """The result of one predict step."""

    rankings: list[Ranking]
    failures: list[Failure]


class LitRank(JanusModule):
    """Ranks labels for a picture, or pictures for a text, with DoLa-static.

    Args:
        model_path: Checkpoint of the scorer: for siglip a SigLIP or SigLIP 2 in transformers'
            layout, otherwise a Janus; a local folder or a name on the Hugging Face hub.
        scorer: siglip: similarity, DoLa over the candidates, the middle layer being one of the
            vision tower; likelihood: a Janus' mean log-probability per token of the label after the
            picture and a question, less that without the picture; yes_no: a Janus'
            P(yes) / (P(yes) + P(no)) for a question about the label.
        dola: Whether to use DoLa.
        alpha: Threshold of the head set (DoLa's relative top); 0: no head set.
        strength: How much of the middle layer is subtracted: 1 is DoLa, 0 leaves the head set.
        layer_ratio: Relative depth of the middle layer.
        layer: Index of the middle layer in ``hidden_states`` (0 is the embedding); overrides
            ``layer_ratio``.
        mid_norm: For a Janus, whether to apply its final norm to the middle layer first; a SigLIP's
            middle layer always goes through its post-layernorm.
        question: What a Janus is asked; for yes_no with ``{label}`` in it. null: "What is in the
            image?" for likelihood, "Does this image show {label}?" for yes_no.
        texts_at_once: Labels whose tokens a Janus reads together.
        preprocess: Whose rounding when pictures are scaled for a Janus.
        system_prompt: What a Janus' conversation starts with; empty: nothing.
        roles: Role names in a Janus' conversation: pro, base or auto.
        quantize: Store the weights of a Janus' language model in fewer bits, using torchao.
    """

    batch_setting = "items_per_batch"
    items = "items"
    shared = (*JanusModule.shared, "scorer", "system_prompt", "preprocess")
    janus: UnderstandingJanus
    siglip: Siglip
    """The SigLIP, once it is loaded."""

    def __init__(
        self,
        model_path: str = "checkpoints/shapes-siglip",
        scorer: RankScorer = "siglip",
        dola: bool = True,
        alpha: ClosedUnitInterval = 0.1,
        strength: ClosedUnitInterval = 1.0,
        layer_ratio: ClosedUnitInterval = 0.8,
        layer: PositiveInt | None = None,
        mid_norm: bool = False,
        question: str | None = None,
        texts_at_once: PositiveInt = 16,
        preprocess: Preprocess = "deepseek",
        system_prompt: str = SYSTEM_PROMPT,
        roles: Roles = "auto",
        quantize: Quantization | None = None,
    ) -> None:
        super().__init__(
            model_path,
            dola=dola,
            layer_ratio=layer_ratio,
            layer=layer,
            compile=False,
            quantize=quantize,
        )
        self.save_hyperparameters()
        self.scorer = scorer
        self.scoring = Scoring(alpha=alpha, strength=strength, mid_norm=mid_norm)
        self.question = question or QUESTIONS.get(scorer, "")
        self.texts_at_once = texts_at_once
        self.preprocess = preprocess

    @property
    def uses_janus(self) -> bool:
        """Whether the scorer is a Janus."""
        return self.scorer != "siglip"

    def check(self, model: ModelFolder) -> None:
        """Check the settings against the model.

        Raises:
            UserError: If they do not fit it or one another.
        """
        super().check(model)
        check_question(self.question, of_labels=self.scorer == "yes_no")
        if self.quantize and not self.uses_janus:
            raise UserError("model.quantize: the scorer siglip has no such weights; expected null")

    def setup(self, stage: str) -> None:
        """Check the settings before anything is loaded.

        Raises:
            UserError: If they do not fit the model or one another.
        """
        super().setup(stage)
        if self.uses_janus:
            self.pixels = PixelProcessor.of_checkpoint(self.plan.checkpoint, self.preprocess)

    def take_model(self, other: Self) -> None:
        """Use the loaded model of another module of the same checkpoint, if it has one."""
        super().take_model(other)
        if hasattr(other, "siglip"):
            self.siglip = other.siglip

    def check_sharded(self) -> None:
        """Refuse to rank with a model that no rank has as a whole.

        Raises:
            UserError: Always.
        """
        raise UserError("trainer.strategy: a sharded model cannot rank; expected ddp or auto")

    def load(self, checkpoint: Checkpoint, **how: Any) -> UnderstandingJanus:
        """Load a Janus for understanding.

        Raises:
            UserError: If it cannot be loaded.
        """
        return load_understanding(checkpoint, **how)

    def load_model(self, plan: RunPlan) -> None:
        """Load the scorer's model.

        Raises:
            UserError: If it cannot be loaded.
        """
        if self.uses_janus:
            super().load_model(plan)
        elif not hasattr(self, "siglip"):
            checkpoint = plan.model
            assert isinstance(checkpoint, SiglipCheckpoint)
            dtype, device = torch.get_default_dtype(), torch.get_default_device()
            self.siglip = Siglip(checkpoint, dtype, device)

    def on_predict_start(self) -> None:
        """Prepare the scorer."""
        self.judge = self._make_judge()

    def on_predict_end(self) -> None:
        """Free what the scorer keeps."""
        del self.judge

    @property
    def max_new_tokens(self) -> int:
        """None: nothing is drawn."""
        return 0

    def _make_judge(self) -> Judge:
        layer, scoring = self.middle_layer(self.plan.model), self.scoring
        if not self.uses_janus:
            return SiglipJudge(self.siglip, layer, scoring.alpha, scoring.strength)
        self.janus.restore_float32()
        pack_weights(self.janus)
        scorer = TextScorer(
            self.janus, self.janus.text_head, scoring, layer=layer, texts_at_once=self.texts_at_once
        )
        encoder = self.plan.encoder
        assert isinstance(encoder, QuestionEncoder)
        kind = LikelihoodJudge if self.scorer == "likelihood" else YesNoJudge
        return kind(self.janus, scorer, encoder, self.pixels, self.question)

    def predict_step(self, batch: list[RankRequest], batch_idx: int) -> Rankings:
        """Score a batch of requests, one after another."""
        rankings: list[Ranking] = []
        failures: list[Failure] = []
        for request in batch:
            try:
                scores = self.judge(request.pictures, request.labels)
            except UserError as error:
                failures.append(Failure.of(request, str(error)))
                continue
            if scores.isnan().any() or (scores == math.inf).any():
                failures.append(Failure.of(request, "the model's logits are NaN or infinite"))
                continue
            rankings.append(_ranking(request, scores.double().cpu()))
        return Rankings(rankings, failures)


def _ranking(request: RankRequest, scores: Tensor) -> Ranking:
    order = scores.argsort(descending=True, stable=True).tolist()
    found = [None if score == -math.inf else score for score in scores.tolist()]
    return Ranking(request, found, order)
