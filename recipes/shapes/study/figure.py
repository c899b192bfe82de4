"""The figures of the study: rates at several guidance scales, and with one row per image or two.

    python -m recipes.shapes.study.figure outputs/study

Writes ``study.svg`` and ``lens.svg`` into that folder, also as PDF and PNG.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lit_dola.reports.figures import in_percent, save
from lit_dola.reports.scores import OVERALL, rates
from recipes.shapes.study.choose import GUIDANCE
from recipes.shapes.study.common import Variant, variants_of

LINES = {
    "baseline": ("Janus, DoLa off", "black", "o"),
    "head_set": ("head set alone (strength 0)", "C0", "s"),
    "dola": ("head set and contrast (0 < strength < 1)", "C2", "D"),
    "plain_contrast": ("plain contrast (strength 1)", "C3", "^"),
}
"""Label, colour and marker of each line."""


ROWS = {
    "Janus, DoLa off": ("one_row", "guided_baseline", "black", "o"),
    "head set alone": ("head_set", "guided_head_set", "C0", "s"),
    "head set, guided by a lensed layer": ("lens", "guided_lens", "C2", "D"),
}
"""By label, the variants of one and of two rows per image, and a line's colour and marker."""


def main(folder: Path) -> None:
    """Draw the figures."""
    found = variants_of(folder / "headline")
    figure, axes = _axes("guidance scale", GUIDANCE)
    for number, (name, (text, colour, marker)) in enumerate(LINES.items()):
        variants = [found[f"{name}-at-{weight}"] for weight in GUIDANCE]
        _line(axes, [weight + 0.06 * (number - 1.5) for weight in GUIDANCE], variants,
              color=colour, marker=marker, label=text)  # fmt: skip
    _save(figure, folder / "study")
    found = variants_of(folder / "lens")
    figure, axes = _axes("rows per image", (1, 2))
    for number, (text, (one, two, colour, marker)) in enumerate(ROWS.items()):
        _line(axes, [rows + 0.02 * (number - 1) for rows in (1, 2)], [found[one], found[two]],
              color=colour, marker=marker, label=text)  # fmt: skip
    _save(figure, folder / "lens")


def _axes(label: str, ticks: Sequence[float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xticks(ticks)
    axes.set_xlabel(label)
    axes.set_ylabel("percent right, held-out prompts")
    axes.grid(alpha=0.3)
    return figure, axes


def _line(axes: Any, places: Sequence[float], variants: Sequence[Variant], **style: Any) -> None:
    """Draw the rates of variants, with their intervals."""
    means, errors = in_percent([rates(variant.scores)[OVERALL] for variant in variants])
    axes.errorbar(places, means, yerr=errors, capsize=3, **style)


def _save(figure: Figure, path: Path) -> None:
    figure.axes[0].set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2)
    save(figure, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
