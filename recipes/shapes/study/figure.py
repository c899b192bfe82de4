"""The figure of the study: the rate at several guidance scales, with and without parts of DoLa.

    python -m recipes.shapes.study.figure outputs/study

Writes ``study.svg``, ``.pdf`` and ``.png`` into that folder.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from lit_dola.reports.figures import in_percent, save
from lit_dola.reports.scores import OVERALL, rates
from recipes.shapes.study.choose import GUIDANCE
from recipes.shapes.study.common import variants_of

LINES = {
    "baseline": ("Janus, DoLa off", "black", "o"),
    "head_set": ("head set alone (strength 0)", "C0", "s"),
    "dola": ("head set and contrast (0 < strength < 1)", "C2", "D"),
    "plain_contrast": ("plain contrast (strength 1)", "C3", "^"),
}
"""Label, colour and marker of each line."""


def main(folder: Path) -> None:
    """Draw the figure."""
    found = variants_of(folder / "headline")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, (text, colour, marker)) in enumerate(LINES.items()):
        estimates = [rates(found[f"{name}-at-{weight}"].scores)[OVERALL] for weight in GUIDANCE]
        means, errors = in_percent(estimates)
        places = [weight + 0.06 * (number - 1.5) for weight in GUIDANCE]
        axes.errorbar(
            places, means, yerr=errors, color=colour, marker=marker, capsize=3, label=text
        )
    axes.set_xticks(GUIDANCE)
    axes.set_xlabel("guidance scale")
    axes.set_ylabel("percent right, held-out prompts")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    save(figure, folder / "study")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
