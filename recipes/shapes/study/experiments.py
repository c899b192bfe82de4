"""Uses of a lens that are no settings: a beta that changes with the step, a lens for each branch.

    python -m recipes.shapes.study.experiments outputs/study

A part of the token loop, or the lens, is replaced by another. Writes ``experiments.json``, the rate
of each on the tuning prompts.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from lit_dola import JanusPipeline
from lit_dola.decoding.sampling import gumbel_noise
from lit_dola.decoding.step import Decoder
from lit_dola.dola import apc_mask
from lit_dola.janus.lens import LensFile
from lit_dola.reports.scores import OVERALL, Score, rates
from recipes.shapes.scorer import ShapesScorer
from recipes.shapes.study.common import CHECKPOINT, LENS

Schedule = Callable[[Tensor], Tensor]
"""From the share of an image that is drawn, 0 to 1, to beta."""
SCHEDULES: dict[str, Schedule] = {
    "2 to 0": lambda drawn: 2 - 2 * drawn,
    "1.5 to 0.5": lambda drawn: 1.5 - drawn,
    "0.5 to 1.5": lambda drawn: 0.5 + drawn,
}
STRENGTHS = (0.2, 0.5, 1.0)
"""Strengths of DoLa's own contrast with one lens, and with one for each branch."""
_IMAGES, _LAYER = 2, 3

Experiment = tuple[str, dict[str, Any], AbstractContextManager[Any]]
"""Title, settings, and what is replaced."""


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


class PerBranch(nn.Module):
    """A lens for each branch; the rows of an image alternate, the conditional one first.

    Args:
        lenses: That of the conditional branch, and that of the unconditional one.
    """

    def __init__(self, *lenses: nn.Module) -> None:
        super().__init__()
        self.lenses = nn.ModuleList(lenses)

    def forward(self, states: Tensor) -> Tensor:
        """Read states, ``(rows, tokens, hidden)``."""
        rows = [lens(states[branch::2]) for branch, lens in enumerate(self.lenses)]
        return torch.stack(rows, dim=1).flatten(0, 1)


def experiments(folder: Path) -> Iterator[Experiment]:
    """Yield the experiments; the lenses of branches are those of :file:`study.sh`."""
    for name, schedule in SCHEDULES.items():
        settings = {"contrast": "guide", "cfg_weight": 1.0}
        replaced = patch("lit_dola.decoding.step.race", race_with(schedule, 144))
        yield f"beta {name}", settings, replaced
    files = [LensFile.open(folder / f"lenses/{name}.safetensors") for name in ("prompted", "blank")]
    readouts = [file.readout(_LAYER, torch.float32, torch.device("cpu")) for file in files]
    for strength in STRENGTHS:
        settings = {"contrast": "dola", "cfg_weight": 2.0, "strength": strength}
        yield f"two rows, strength {strength}, one lens", settings, nullcontext()
        replaced = patch.object(LensFile, "readout", lambda *_: PerBranch(*readouts))
        yield f"two rows, strength {strength}, a lens per branch", settings, replaced


def main(folder: Path) -> None:
    """Draw the tuning prompts in each experiment, and score them."""
    lines = (folder / "tuning.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    pipeline, scorer = JanusPipeline.from_pretrained(CHECKPOINT), ShapesScorer()
    found = {}
    for title, settings, replaced in experiments(folder):
        with replaced:
            drawn = pipeline.generate(
                [entry["prompt"] for entry in entries],
                lens=LENS, layer=_LAYER, alpha=0.005, dola=True, parallel_size=_IMAGES,
                images_per_batch=128, **settings,
            )  # fmt: skip
        scores = [
            Score(entry["tag"], index, image, scorer(drawn.images[index * _IMAGES + image], entry))
            for index, entry in enumerate(entries)
            for image in range(_IMAGES)
        ]
        found[title] = rates(scores)[OVERALL].mean
        print(f"{title}: {100 * found[title]:.1f} %", flush=True)
    (folder / "experiments.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
