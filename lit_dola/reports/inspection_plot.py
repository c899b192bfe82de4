"""Plotting an inspection over the grid of an image's tokens."""

from io import BytesIO
from math import isqrt
from pathlib import Path
from textwrap import shorten, wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lit_dola.decoding.inspection import Inspection
from lit_dola.runs.files import write_atomically
from lit_dola.runs.records import ImageRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Grids = dict[str, Any]
"""Arrays by name."""
_SHOWN = ("alpha", "strength", "layer", "cfg_weight", "temperature", "top_k", "top_p", "min_p")
"""Settings in the figure's title; those that are null are left out."""
_COLOUR = 0.6
"""Share of a figure's colour over an image."""
_PALE = 0.35
"""Contrast that is left to tokens which the baseline would draw, too."""


def inspection_grids(inspection: Inspection) -> Grids:
    """Return the figures as arrays ``(rows, columns)``, as the tokens lie in the image.

    Returns:
        By the names of :class:`lit_dola.decoding.inspection.Inspection`.
    """
    side = isqrt(len(inspection.token))
    return {name: values.reshape(side, -1).numpy() for name, values in inspection._asdict().items()}


def write_inspection(
    path: Path, inspection: Inspection, image: Image.Image, record: ImageRecord
) -> Path:
    """Write ``{path}.inspect.npz``, the figures, and ``{path}.inspect.png``, a plot of them.

    Args:
        path: Path of the image, without a suffix.
        inspection: Figures for every step; the file has :func:`inspection_grids` of them.
        image: The image.
        record: Its prompt and settings, for the plot.

    Returns:
        Path of the plot.
    """
    npz, png = BytesIO(), BytesIO()
    np.savez(npz, **inspection_grids(inspection))
    write_atomically(path.with_name(f"{path.name}.inspect.npz"), [npz.getvalue()])
    plot = path.with_name(f"{path.name}.inspect.png")
    figure = inspection_figure(inspection, image, record)
    figure.savefig(png, format="png", dpi=100, metadata={"Software": None})
    write_atomically(plot, [png.getvalue()])
    return plot


def inspection_figure(inspection: Inspection, image: Image.Image, record: ImageRecord) -> "Figure":
    """Plot where DoLa changed an image.

    Returns:
        A figure of matplotlib, which must be installed.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    grids = inspection_grids(inspection)
    changed = grids["token"] != grids["baseline_token"]
    figure = Figure(figsize=(10.5, 7.6), layout="constrained")
    figure.suptitle(_title(record), fontsize=11, parse_math=False)
    axes = figure.subplots(2, 3)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image")
    axes[0, 1].imshow(_highlight(image, changed))
    axes[0, 1].set_title(f"changed tokens, in colour: {100 * changed.mean():.0f} %")
    entropies = [grids["entropy_before"], grids["entropy_after"]]
    scale = {"vmin": 0, "vmax": max(float(np.max(entropies)), 1e-6)}
    panels: list[tuple[Any, Any, str, dict[str, Any]]] = [
        (axes[0, 2], grids["divergence"], "divergence of the layers, nats", {"vmin": 0}),
        (axes[1, 0], grids["head_size"], "tokens that may be drawn", {"norm": LogNorm(vmin=1)}),
        (axes[1, 1], entropies[0], "entropy of the baseline, nats", scale),
        (axes[1, 2], entropies[1], "entropy with DoLa, nats", scale),
    ]
    for axis, values, title, limits in panels:
        shown = axis.imshow(values, interpolation="nearest", **limits)
        axis.set_title(title)
        if axis is not axes[1, 1]:  # both entropies have one bar
            beside = axes[1, 1:] if axis is axes[1, 2] else axis
            figure.colorbar(shown, ax=beside, shrink=0.8)
    return figure


MAPS = {
    "changed": "changed tokens, in colour",
    "divergence": "divergence of the layers, nats",
    "head_size": "tokens that may be drawn",
    "entropy_before": "entropy of the baseline, nats",
    "entropy_after": "entropy with DoLa, nats",
}
"""Maps that can be shown over an image, and their descriptions."""


def inspection_map(
    inspection: Inspection, image: Image.Image, name: str
) -> tuple[Image.Image, str]:
    """Show one figure of an inspection over its image.

    Returns:
        The image in grey under the figure's colours, and a line that explains them.
    """
    from matplotlib import colormaps

    grids = inspection_grids(inspection)
    if name == "changed":
        changed = grids["token"] != grids["baseline_token"]
        return _highlight(image, changed), f"{MAPS[name]}: {100 * changed.mean():.0f} %"
    values = np.asarray(grids[name], dtype=float)
    shown = np.log(values) if name == "head_size" else values  # spans orders of magnitude
    spread = float(shown.max() - shown.min()) or 1.0
    colours = colormaps["viridis"]((shown - shown.min()) / spread, bytes=True)[..., :3]
    over = Image.fromarray(colours).resize(image.size, Image.Resampling.NEAREST)
    told = f"{MAPS[name]}: {values.min():.3g} (dark) to {values.max():.3g} (bright)"
    mixed = Image.blend(image.convert("L").convert("RGB"), over, _COLOUR)
    return mixed, f"{told}, mean {values.mean():.3g}"


def _title(record: ImageRecord) -> str:
    settings = record.settings
    shown = [f"{name} {settings[name]}" for name in _SHOWN if settings.get(name) is not None]
    shown.append(f"seed {settings['seed']}, image {record.image_index}")
    prompt = wrap(shorten(record.prompt, 200, placeholder=" …"), 110)
    return "\n".join([*prompt, ", ".join(shown)])


def _highlight(image: Image.Image, changed: npt.NDArray[np.bool_]) -> Image.Image:
    """Return the image, pale and grey where the baseline would draw the same tokens."""
    grey = image.convert("L").convert("RGB")
    pale = Image.blend(Image.new("RGB", image.size, (235, 235, 235)), grey, _PALE)
    return Image.composite(
        image, pale, Image.fromarray(changed).resize(image.size, Image.Resampling.NEAREST)
    )
