"""Scorers of pictures against texts: a SigLIP, or a Janus in one of two ways."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from lit_dola.data.pictures import Picture, read_picture
from lit_dola.decoding.likelihood import TextScorer
from lit_dola.dola import MASK_VALUE, contrast_with_apc_from_logits
from lit_dola.errors import UserError
from lit_dola.janus.pixels import PixelProcessor
from lit_dola.janus.question import QuestionEncoder
from lit_dola.janus.understanding import UnderstandingJanus
from lit_dola.judges.siglip import Siglip

LABEL = "{label}"
"""Stands for the label in a question."""
YES = ("yes", "Yes", " yes", " Yes")
NO = ("no", "No", " no", " No")
_MOST_TEXTS = 10_000
"""Texts whose embeddings are kept."""


class Judge(Protocol):
    """Scores candidates."""

    def __call__(self, pictures: Sequence[Picture], labels: Sequence[str]) -> Tensor:
        """Score labels for one picture, or pictures for one label.

        Returns:
            One score per candidate, float32; ``-inf`` for those outside the head set.

        Raises:
            UserError: If a picture is broken.
        """


class SiglipJudge:
    """Similarity, with DoLa-static over the candidates.

    Args:
        siglip: The model.
        layer: Index of the vision tower's middle layer in ``hidden_states``; None turns DoLa off.
        alpha: Threshold of the head set.
        strength: How much of the middle layer is subtracted.
    """

    def __init__(self, siglip: Siglip, layer: int | None, alpha: float, strength: float) -> None:
        self.siglip, self.layer, self.alpha, self.strength = siglip, layer, alpha, strength
        self._texts: dict[str, Tensor] = {}

    def __call__(self, pictures: Sequence[Picture], labels: Sequence[str]) -> Tensor:
        """See :class:`Judge`."""
        embedded = [self.siglip.embed_picture(read_picture(it), self.layer) for it in pictures]
        logits = self.siglip.logits(torch.stack(embedded, dim=1), self._embed(labels)).float()
        final: Tensor
        final, *mid = logits.flatten(1)  # (layers, candidates): one of the two numbers is 1
        if not mid:
            return final
        scores: Tensor = contrast_with_apc_from_logits(final, mid[0], self.alpha, self.strength)
        return scores.masked_fill(scores == MASK_VALUE, float("-inf"))

    def _embed(self, labels: Sequence[str]) -> Tensor:
        """Return the embeddings of labels, each computed once."""
        if len(self._texts) > _MOST_TEXTS:
            self._texts.clear()
        for label in labels:
            if label not in self._texts:
                self._texts[label] = self.siglip.embed_text(label)
        return torch.stack([self._texts[label] for label in labels])


class JanusJudge:
    """Base of both scorers by a Janus."""

    def __init__(
        self,
        janus: UnderstandingJanus,
        scorer: TextScorer,
        encoder: QuestionEncoder,
        pixels: PixelProcessor,
        question: str,
    ) -> None:
        self.janus, self.scorer, self.encoder = janus, scorer, encoder
        self.pixels, self.question = pixels, question

    def score(self, embeddings: Tensor, labels: Sequence[str]) -> Tensor:
        """Score labels for one picture, see :class:`Judge`.

        Args:
            embeddings: Those of the picture, ``(num_image_tokens, hidden)``.
            labels: The labels.
        """
        raise NotImplementedError

    def __call__(self, pictures: Sequence[Picture], labels: Sequence[str]) -> Tensor:
        """See :class:`Judge`."""
        scores = []
        for picture in pictures:
            image = read_picture(picture, self.pixels.background)
            embeddings = self.janus.embed_picture(self.pixels(image))
            scores.append(self.score(embeddings, labels))
        return torch.cat(scores)

    def prompt(self, question: str, seen: bool = True) -> list[int]:
        """Return the token ids of a question with its picture, or with pad tokens in its place."""
        image = self.encoder.image_token_id
        rows = count(-1, -1)
        return [
            token if token != image else next(rows) if seen else self.janus.pad_token_id
            for token in self.encoder.encode_question(question)
        ]


class LikelihoodJudge(JanusJudge):
    """Mean log-probability per token of each label, less that without the picture."""

    def score(self, embeddings: Tensor, labels: Sequence[str]) -> Tensor:
        """See :class:`JanusJudge`."""
        texts = [self.encoder.encode_text(f" {label}") for label in labels]
        branches = self.prompt(self.question), self.prompt(self.question, seen=False)
        with_picture, without = self.scorer.mean_log_probs(branches, texts, embeddings).T
        # Outside the head set of the row with the picture both are -inf.
        return torch.where(with_picture.isfinite(), with_picture - without, with_picture)


class YesNoJudge(JanusJudge):
    """P(yes) / (P(yes) + P(no)) of a question about each label."""

    def score(self, embeddings: Tensor, labels: Sequence[str]) -> Tensor:
        """See :class:`JanusJudge`."""
        return torch.stack([self._probability(label, embeddings) for label in labels])

    def _probability(self, label: str, embeddings: Tensor) -> Tensor:
        prompt = self.prompt(self.question.replace(LABEL, label))
        log_probs: Tensor
        (log_probs,) = self.scorer.next_log_probs((prompt,), embeddings)
        yes, no = (
            log_probs[first_tokens(self.encoder.encode_text, words)].logsumexp(dim=0)
            for words in (YES, NO)
        )
        # If neither may be said, the score is masked.
        both = torch.stack([yes, no])
        return torch.where(both.isfinite().any(), both.softmax(dim=0)[0], both[0])


def first_tokens(encode: Callable[[str], Sequence[int]], words: Sequence[str]) -> list[int]:
    """Return the different first tokens of words, those left out that are spaces alone."""
    found = {word: encode(word) for word in words}
    spaces = set(encode(" "))
    return sorted({ids[0] for ids in found.values() if ids and ids[0] not in spaces})


def check_question(question: str, of_labels: bool) -> None:
    """Check that a question has the label in it exactly if it is about one."""
    if of_labels and LABEL not in question:
        raise UserError(
            f"{question!r:.60} has no {LABEL}",
            "one for the scorer yes_no",
            setting="model.question",
        )
