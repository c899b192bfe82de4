"""Scores of an evaluation: rates per skill with intervals, paired with a reference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from lit_dola.reports.intervals import LEVEL, Estimate, average, difference, rate, sign_test

OVERALL = "overall"
"""The unweighted mean of the skills, as GenEval's overall score is."""


class Score(NamedTuple):
    """The score of one image."""

    skill: str
    prompt_index: int
    image_index: int
    right: float
    """1 or 0, or anything between."""


class Table(NamedTuple):
    """Further figures of each variant, besides its rates."""

    name: str
    """Its key in the JSON."""
    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    """Shares by variant, one per column."""


Prompts = dict[str, list[list[float]]]
"""By skill, the values of each prompt's images."""


def by_prompt(scores: list[Score], reference: list[Score] | None = None) -> Prompts:
    """Group scores by skill and prompt; with a reference, differences from it, image by image.

    Args:
        scores: Scores of one variant.
        reference: Scores of another variant on the same prompts and noise; images
            that it lacks are left out.
    """
    theirs = {score[1:3]: score.right for score in reference or ()}
    found: dict[str, dict[int, list[float]]] = {}
    for score in sorted(scores, key=lambda score: score[1:3]):
        right = score.right
        if reference is not None:
            if score[1:3] not in theirs:
                continue
            right -= theirs[score[1:3]]
        found.setdefault(score.skill, {}).setdefault(score.prompt_index, []).append(right)
    return {skill: list(prompts.values()) for skill, prompts in found.items()}


def rates(scores: list[Score]) -> dict[str, Estimate]:
    """Estimate the rate of each skill, in the order of the prompts, and :data:`OVERALL` last."""
    return _with_overall(by_prompt(scores), rate)


def differences(scores: list[Score], reference: list[Score]) -> dict[str, Estimate]:
    """Estimate the mean difference from a reference likewise, image by image."""
    return _with_overall(by_prompt(scores, reference), lambda p: difference(_means(p)))


def p_value(scores: list[Score], reference: list[Score]) -> float:
    """Return the p-value of the difference from a reference, over the prompts of all skills."""
    prompts = by_prompt(scores, reference).values()
    return round(sign_test(_means([images for skill in prompts for images in skill])), 6)


def show_p(p: float) -> str:
    """Return a p-value as reports print it."""
    return f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


def _means(prompts: Sequence[Sequence[float]]) -> list[float]:
    return [sum(images) / len(images) for images in prompts]


def _with_overall(
    prompts: Prompts, estimate: Callable[[list[list[float]]], Estimate]
) -> dict[str, Estimate]:
    found = {skill: estimate(values) for skill, values in prompts.items()}
    return {**found, OVERALL: average(list(found.values()))} if found else {}


@dataclass(frozen=True)
class Report:
    """Results of an evaluation."""

    scores: Mapping[str, list[Score]]
    """Scores by variant."""
    reference: str
    """Variant that the others are compared with."""
    variants: Mapping[str, Mapping[str, Any]]
    """Changes of each variant."""
    grid: Mapping[str, Sequence[Any]]
    """Values by setting of the variants that are combinations; may be empty."""
    about: Mapping[str, Any]
    """Model and seed of the evaluation."""
    results: str = "images"
    """Plural noun of the scored results."""
    subjects: str = "prompts"
    """Plural noun of the entries, which intervals are over."""
    tables: Sequence[Table] = ()
    """Further figures."""
    quantity: str = "Percent right"
    """Name of a score times 100."""
    note: str = ""
    """Further note for readers."""

    @property
    def methods(self) -> str:
        """Methods of the intervals and p-values."""
        return (
            f"{LEVEL} % intervals over {self.subjects}: Wilson's for rates, Bonett and Price's for"
            " paired differences, Zou and Donner's for the mean of the skills; p by the exact sign"
            f" test over {self.subjects}"
        )

    @cached_property
    def rates(self) -> dict[str, dict[str, Estimate]]:
        """Rates by variant and skill."""
        return {name: rates(own) for name, own in self.scores.items()}

    @cached_property
    def differences(self) -> dict[str, dict[str, Estimate]]:
        """Differences from the reference, by variant and skill; without the reference."""
        return {name: differences(own, self._theirs) for name, own in self._others.items()}

    @cached_property
    def p_values(self) -> dict[str, float]:
        """P-values of the overall differences by variant; without the reference."""
        return {name: p_value(own, self._theirs) for name, own in self._others.items()}

    @property
    def _theirs(self) -> list[Score]:
        return self.scores[self.reference]

    @property
    def _others(self) -> dict[str, list[Score]]:
        return {name: own for name, own in self.scores.items() if name != self.reference}
