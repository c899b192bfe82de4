"""Ranking labels for a picture, or pictures for a text, with DoLa-static on three scorers."""

import math
from dataclasses import fields
from typing import Any, Literal, NamedTuple, Self

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure, RankRequest
from lit_dola.decoding.likelihood import TextScorer
from lit_dola.decoding.scoring import Contrast
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import ModelFolder
from lit_dola.janus.packing import pack_weights
from lit_dola.janus.question import QuestionEncoder
from lit_dola.judges.judges import Judge, LikelihoodJudge, SiglipJudge, YesNoJudge, check_question
from lit_dola.judges.siglip import Siglip, SiglipCheckpoint
from lit_dola.tasks.understand import UnderstandingModule

RankScorer = Literal["siglip", "likelihood", "yes_no"]
QUESTIONS = {"likelihood": "What is in the image?", "yes_no": "Does this image show {label}?"}
"""Default questions to a Janus, by scorer."""


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


class LitRank(UnderstandingModule):
    """Ranks labels for a picture, or pictures for a text, with DoLa-static.

    Args:
        question: Question to a Janus; for yes_no with ``{label}`` in it. null: "What is in the
            image?" for likelihood, "Does this image show {label}?" for yes_no.
        texts_at_once: Labels whose tokens a Janus reads together.
        model_path: Checkpoint of the scorer: for siglip a SigLIP or SigLIP 2 in transformers'
            layout, otherwise a Janus; a local folder or a name on the Hugging Face hub.
        scorer: siglip: similarity, DoLa over the candidates, the middle layer being one of the
            vision tower; likelihood: a Janus' mean log-probability per token of the label after the
            picture and a question, less that without the picture; yes_no: a Janus'
            P(yes) / (P(yes) + P(no)) for a question about the label.
        mid_norm: For a Janus, apply its final norm to the middle layer first; a SigLIP's middle
            layer always goes through its post-layernorm.
        settings: Settings of :class:`UnderstandingModule`.
    """

    batch_setting = "items_per_batch"
    items = "items"
    shared = (*UnderstandingModule.shared, "scorer")
    siglip: Siglip
    """The SigLIP, once loaded."""

    def __init__(
        self,
        *,
        question: str | None = None,
        texts_at_once: PositiveInt = 16,
        model_path: str = "checkpoints/shapes-siglip",
        scorer: RankScorer = "siglip",
        **settings: Any,
    ) -> None:
        super().__init__(model_path=model_path, **settings)
        self.scorer = scorer
        own = {field.name: self.hparams[field.name] for field in fields(Contrast)}
        self.contrast = Contrast(**own)
        self.question = question or QUESTIONS.get(scorer, "")
        self.texts_at_once = texts_at_once

    @property
    def uses_janus(self) -> bool:
        """Return whether the scorer is a Janus."""
        return self.scorer != "siglip"

    def check(self, model: ModelFolder) -> None:
        """Check the settings against the model."""
        super().check(model)
        check_question(self.question, of_labels=self.scorer == "yes_no")
        if self.quantize and not self.uses_janus:
            raise UserError(
                "the scorer siglip has no such weights", "null", setting="model.quantize"
            )

    def take_model(self, other: Self) -> None:
        """Use the loaded model of another module of the same checkpoint, if it has one."""
        super().take_model(other)
        if hasattr(other, "siglip"):
            self.siglip = other.siglip

    def check_sharded(self) -> None:
        """Refuse to rank with a model that no rank has as a whole."""
        raise UserError("a sharded model cannot rank", "ddp or auto", setting="trainer.strategy")

    def open_model(self) -> ModelFolder:
        """Open the checkpoint of the scorer."""
        return super().open_model() if self.uses_janus else SiglipCheckpoint.open(self.model_path)

    def load_model(self, plan: RunPlan) -> None:
        """Load the scorer's model."""
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

    def _make_judge(self) -> Judge:
        layer, contrast = self.middle_layer(self.plan.model), self.contrast
        if not self.uses_janus:
            return SiglipJudge(self.siglip, layer, contrast.alpha, contrast.strength)
        self.janus.restore_float32()
        pack_weights(self.janus)
        scorer = TextScorer(
            self.janus,
            self.janus.text_head,
            contrast,
            layer=layer,
            texts_at_once=self.texts_at_once,
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
