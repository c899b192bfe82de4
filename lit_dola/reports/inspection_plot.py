"""Plotting an inspection over the grid of an image's tokens."""

from io import BytesIO
from math import isqrt
from pathlib import Path

import numpy as np
from PIL import Image

from lit_dola.decoding.inspection import Inspection
from lit_dola.runs.files import write_atomically


def write_inspection(path: Path, inspection: Inspection, image: Image.Image) -> Path:
    """Write ``{path}.inspect.npz``, the figures, and ``{path}.inspect.png``, a plot of them.

    The arrays have the names of :class:`lit_dola.decoding.inspection.Inspection` and the shape of
    the grid, ``(rows, columns)``, in the order in which the tokens are drawn.

    Args:
        path: Path of the image, without a suffix.
        inspection: Figures for every step.
        image: The image.

    Returns:
        Path of the plot.
    """
    side = isqrt(len(inspection.token))
    grids = {
        name: values.reshape(side, -1).numpy() for name, values in inspection._asdict().items()
    }
    npz = BytesIO()
    np.savez(npz, **grids)
    write_atomically(path.with_name(f"{path.name}.inspect.npz"), [npz.getvalue()])
    plot = path.with_name(f"{path.name}.inspect.png")
    write_atomically(plot, [_plot(grids, image)])
    return plot


def _plot(grids: dict[str, np.ndarray], image: Image.Image) -> bytes:
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    changed = grids["token"] != grids["baseline_token"]
    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image")
    # Each token's place in the image; tokens that the baseline would draw too are darkened.
    rows, columns = changed.shape
    axes[0, 1].imshow(image.resize((columns * 16, rows * 16)), extent=(0, columns, rows, 0))
    shade = np.zeros((rows, columns, 4))
    shade[..., 3] = np.where(changed, 0.0, 0.75)
    axes[0, 1].imshow(shade, extent=(0, columns, rows, 0), interpolation="nearest")
    axes[0, 1].set_title(f"not the baseline's token: {100 * changed.mean():.0f} %")
    entropies = [grids["entropy_before"], grids["entropy_after"]]
    top = max(float(np.max(entropies)), 1e-6)
    panels = (
        (
            axes[0, 2],
            grids["divergence"],
            "divergence of the layers, nats",
            {"vmin": 0},
        ),
        (axes[1, 0], grids["head_size"], "tokens that may be drawn", {"norm": LogNorm(vmin=1)}),
        (axes[1, 1], entropies[0], "entropy of the baseline, nats", {"vmin": 0, "vmax": top}),
        (axes[1, 2], entropies[1], "entropy with DoLa, nats", {"vmin": 0, "vmax": top}),
    )
    for axis, values, title, scale in panels:
        shown = axis.imshow(values, interpolation="nearest", **scale)
        axis.set_title(title)
        figure.colorbar(shown, ax=axis, shrink=0.8)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=100, metadata={"Software": None})
    return png.getvalue()
