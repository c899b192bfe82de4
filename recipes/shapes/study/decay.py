"""A lensed layer that guides more at some steps of an image than at others.

    python -m recipes.shapes.study.decay outputs/study

An experiment and not a setting: the score of the token loop is replaced by one that knows the step.
Writes ``decay.json``, the rate of each schedule on the tuning prompts.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from lit_dola import JanusPipeline
from lit_dola.decoding.sampling import gumbel_noise
from lit_dola.decoding.step import Decoder
from lit_dola.dola import apc_mask
from lit_dola.reports.scores import OVERALL, Score, rates
from recipes.shapes.scorer import ShapesScorer
from recipes.shapes.study.common import CHECKPOINT, LENS

Schedule = Callable[[Tensor], Tensor]
"""From the share of an image that is drawn, 0 to 1, to beta."""
SCHEDULES: dict[str, Schedule] = {
    "1 throughout": lambda drawn: drawn * 0 + 1,
    "2 to 0": lambda drawn: 2 - 2 * drawn,
    "1.5 to 0.5": lambda drawn: 1.5 - drawn,
    "0.5 to 1.5": lambda drawn: 0.5 + drawn,
}
_IMAGES = 2


def race_with(schedule: Schedule, num_tokens: int) -> Callable[..., Any]:
    """Return what replaces :func:`lit_dola.decoding.step.race`, for one row per image."""

    def race(
        decoder: Decoder, states: Tensor, streams: Tensor, steps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        final, mid = decoder.head.logits(states).flatten(1, 2).log_softmax(dim=-1)
        beta = schedule(steps.flatten() / (num_tokens - 1))[:, None]
        allowed = apc_mask(final, decoder.scoring.alpha)
        scores = (final + beta * (final - mid)).masked_fill(~allowed, float("-inf"))
        streams = streams[:, None].expand_as(steps).flatten()
        noise = gumbel_noise(streams, steps.flatten(), scores.shape[-1])
        finite = scores.amax(dim=-1).isfinite().view_as(steps)
        return decoder.scoring.race(scores, noise), scores, finite, final

    return race


def main(folder: Path) -> None:
    """Draw the tuning prompts under each schedule, and score them."""
    lines = (folder / "tuning.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    pipeline, scorer = JanusPipeline.from_pretrained(CHECKPOINT), ShapesScorer()
    found = {}
    for name, schedule in SCHEDULES.items():
        with patch("lit_dola.decoding.step.race", race_with(schedule, 144)):
            drawn = pipeline.generate(
                [entry["prompt"] for entry in entries],
                contrast="guide", lens=LENS, layer=3, alpha=0.005, cfg_weight=1.0, dola=True,
                parallel_size=_IMAGES, images_per_batch=128,
            )  # fmt: skip
        scores = [
            Score(entry["tag"], index, image, scorer(drawn.images[index * _IMAGES + image], entry))
            for index, entry in enumerate(entries)
            for image in range(_IMAGES)
        ]
        found[name] = rates(scores)[OVERALL].mean
        print(f"beta {name}: {100 * found[name]:.1f} %", flush=True)
    (folder / "decay.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
