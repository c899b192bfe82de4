"""Figures of an evaluation, as SVG, PDF and PNG: rates, differences, and how settings change them.

Colours and scales do not exaggerate: rates start at 0, and a heatmap's colours are in proportion.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import product
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_dola.messages import label
from lit_dola.reports.intervals import Estimate
from lit_dola.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DATES = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
"""File types, and metadata to omit so that equal figures are equal files."""


def draw_rates(
    path: Path,
    rates: Mapping[str, Estimate],
    gains: Mapping[str, Estimate],
    reference: str,
    quantity: str = "Percent right",
) -> None:
    """Draw the overall rate of each variant, and next to it the difference from the reference.

    Args:
        path: File to write, without suffix.
        rates: Overall rates by variant.
        gains: Differences by variant.
        reference: Variant that the others are compared with.
        quantity: What a rate times 100 is.
    """
    from matplotlib.figure import Figure

    names = list(rates)
    width = 8 + 0.08 * max(map(len, names), default=0)
    figure = Figure(figsize=(width, 1.2 + 0.3 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2)
    _dots(left, names, rates)
    left.set_yticks(range(len(names)), names)
    left.set_xlabel(f"overall, {quantity.replace('Percent', 'percent')}")
    left.set_xlim(left=0)
    _dots(right, names, gains)
    right.set_yticks(range(len(names)), [""] * len(names))
    right.set_xlabel(f"percentage points more than {reference}")
    right.axvline(0, color="black", linewidth=0.8)
    save(figure, path)


def _dots(axes: "Axes", names: list[str], found: Mapping[str, Estimate]) -> None:
    shown = [name for name in names if name in found]
    places = [names.index(name) for name in shown]
    means, errors = in_percent([found[name] for name in shown])
    axes.errorbar(means, places, xerr=errors, fmt="o", capsize=3)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def in_percent(found: Sequence[Estimate]) -> tuple[np.ndarray, np.ndarray]:
    """Return means in percent, and the distances to both ends of their intervals."""
    means, low, high = 100 * np.array([estimate[:3] for estimate in found]).reshape(-1, 3).T
    return means, np.array([means - low, high - means])


def draw_grid(
    path: Path,
    rates: Mapping[str, Estimate],
    variants: Mapping[str, Mapping[str, Any]],
    grid: Mapping[str, Sequence[Any]],
) -> bool:
    """Draw how the rate depends on the settings of a grid; returns whether anything varies.

    One setting that varies makes a line with intervals, next to which the other variants stand. Two
    make a heatmap; with more, there is one heatmap for each combination of all but the last two.

    Args:
        path: File to write, without suffix.
        rates: Overall rates by variant.
        variants: What each variant changes.
        grid: Values by setting.
    """
    varying = {key: list(values) for key, values in grid.items() if len(values) > 1}
    if not varying:
        return False
    by_values = {
        tuple(_key(changes[key]) for key in varying): rates[name]
        for name, changes in variants.items()
        if name in rates and varying.keys() <= changes.keys()
    }
    if len(varying) == 1:
        others = {
            name: rate
            for name, rate in rates.items()
            if not varying.keys() <= variants[name].keys()
        }
        _draw_line(path, varying, by_values, others)
    else:
        _draw_heatmaps(path, varying, by_values)
    return True


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _draw_line(
    path: Path,
    varying: Mapping[str, list[Any]],
    by_values: Mapping[tuple[Any, ...], Estimate],
    others: Mapping[str, Estimate],
) -> None:
    from matplotlib.figure import Figure

    ((key, values),) = varying.items()
    labels = sum(len(_text(value)) + 2 for value in values)
    height = 4.5 + 0.25 * len(others)
    figure = Figure(figsize=(max(7, 1 + 0.12 * labels), height), layout="constrained")
    axes = figure.subplots()
    numeric = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    if numeric:
        values = sorted(values)
    places = values if numeric else list(range(len(values)))
    means, errors = in_percent([by_values[_key(value),] for value in values])
    axes.errorbar(places, means, yerr=errors, fmt="o-" if numeric else "o", capsize=3)
    if not numeric:
        axes.set_xticks(places, map(_text, values))
        axes.set_xlim(-0.5, len(values) - 0.5)
    for number, (name, estimate) in enumerate(others.items(), start=1):
        colour = f"C{number}"
        axes.axhline(100 * estimate.mean, color=colour, linestyle="--", label=name)
        axes.axhspan(100 * estimate.low, 100 * estimate.high, color=colour, alpha=0.12)
    if others:
        figure.legend(loc="outside lower center")
    axes.set_xlabel(key)
    axes.set_ylabel("overall, percent right")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    save(figure, path)


def _draw_heatmaps(
    path: Path, varying: Mapping[str, list[Any]], by_values: Mapping[tuple[Any, ...], Estimate]
) -> None:
    from matplotlib.figure import Figure

    *outer, y, x = varying
    combinations = list(product(*(varying[key] for key in outer)))
    columns = min(3, ceil(sqrt(len(combinations))))
    rows = -(-len(combinations) // columns)
    cells = len(varying[x]), len(varying[y])
    size = (columns * (1.2 + 0.75 * cells[0]) + 1.2, rows * (1.2 + 0.5 * cells[1]))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    largest = max(100 * estimate.mean for estimate in by_values.values())
    for axis in axes[len(combinations) :]:
        axis.set_visible(False)
    for axis, combination in zip(axes, combinations):
        means = [
            [
                100 * by_values[tuple(map(_key, (*combination, row, cell)))].mean
                for cell in varying[x]
            ]
            for row in varying[y]
        ]
        image = axis.imshow(means, vmin=0, vmax=largest or 1, cmap="viridis", aspect="auto")
        for (row, column), mean in np.ndenumerate(means):
            colour = "black" if mean > 0.6 * largest else "white"
            axis.text(column, row, f"{mean:.1f}", ha="center", va="center", color=colour)
        axis.set_xticks(range(cells[0]), map(_text, varying[x]))
        axis.set_yticks(range(cells[1]), map(_text, varying[y]))
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.set_title(", ".join(f"{key} {_text(value)}" for key, value in zip(outer, combination)))
    figure.colorbar(image, ax=list(axes), label="overall, percent right")
    save(figure, path)


def _text(value: Any) -> str:
    return label(value, between=", ")


def save(figure: "Figure", path: Path) -> None:
    """Save a figure; the same figure has the same bytes."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "lit-dola", "pdf.fonttype": 42}):
        for suffix, metadata in _DATES.items():
            encoded = BytesIO()
            figure.savefig(encoded, format=suffix, metadata=metadata, dpi=150)
            write_atomically(Path(f"{path}.{suffix}"), [encoded.getvalue()])
