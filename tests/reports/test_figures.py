"""Figures: nothing cut, nothing overdrawn, scales that start at 0, every value there."""

import itertools
import json

import matplotlib.figure
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from lit_dola.evaluation.variants import all_variants
from lit_dola.reports.figures import draw_grid, draw_rates
from lit_dola.reports.intervals import Estimate

GRIDS = {
    "numbers": {"strength": [0, 0.2, 1], "alpha": [0.02]},
    "words": {"apc": ["cond", "union", "intersection", "per_branch"]},
    "long words": {"entropy_temperature": [[2.5, 3, 0.6], [1.25, 3.5, 0.65], [9, 9, 9.25], None]},
    "flags": {"mid_norm": [True, False]},
    "unordered": {"cfg_weight": [5, 2, 8]},
    "two": {"strength": [0, 0.2, 0.4, 0.7, 1], "alpha": [0, 0.005, 0.02]},
    "three": {"cfg_weight": [2, 3, 5, 8], "strength": [0, 0.5], "alpha": [0, 0.1]},
    "lists": {"entropy_temperature": [[2.5, 3, 0.6], None], "mid_norm": [True, False]},
}
NAMED = {
    "baseline": {"dola": False},
    "a-variant-with-a-rather-long-name-of-its-own": {"top_p": 0.9},
}


@pytest.fixture
def figures(monkeypatch):
    """Figures as they were saved."""
    made = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *a, **k: made.append(self) or save(self, *a, **k),
    )
    return made


def estimates(names):
    means = itertools.cycle([0.05, 0.12, 0.5, 0.31])
    return {name: Estimate(m, m - 0.04, m + 0.06, 40) for name, m in zip(names, means)}


def undrawn(axes):
    """Labels of ticks outside the limits, which matplotlib keeps but does not draw."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                yield from (tick.label1, tick.label2)


def texts(figure):
    """The texts that are drawn, and their boxes in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = {label for axes in figure.axes for label in undrawn(axes)}
    hidden |= {
        text for axes in figure.axes if not axes.get_visible() for text in axes.findobj(Text)
    }
    return {
        text: text.get_window_extent(canvas.get_renderer())
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible() and text not in hidden
    }


def check_layout(figure):
    boxes = texts(figure)
    width, height = figure.canvas.get_width_height()
    for text, box in boxes.items():
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 1 or along < 1, (one.get_text(), other.get_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_no_label_is_cut_or_overdrawn(name, figures, tmp_path):
    variants = all_variants(NAMED, GRIDS[name])
    rates = estimates(variants)
    assert draw_grid(tmp_path / "grid", rates, variants, GRIDS[name])
    draw_rates(tmp_path / "report", rates, estimates([*variants][1:]), "baseline")
    for figure in figures[::3]:
        check_layout(figure)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{kind}.{suffix}" for kind in ("grid", "report") for suffix in ("svg", "pdf", "png")
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GRIDS if name in ("two", "three", "lists")])
def test_a_heatmap_has_every_value_in_its_place(name, figures, tmp_path):
    grid = GRIDS[name]
    variants = all_variants({}, grid)
    rates = estimates(variants)
    draw_grid(tmp_path / "grid", rates, variants, grid)
    *outer, y, x = grid
    maps = [axes for axes in figures[0].axes if axes.images]
    for axes, combination in zip(maps, itertools.product(*(grid[key] for key in outer))):
        shown = {t.get_position(): t.get_text() for t in axes.texts}
        for (row, v), (column, u) in itertools.product(enumerate(grid[y]), enumerate(grid[x])):
            changes = {**dict(zip(outer, combination)), y: v, x: u}
            (variant,) = (name for name, own in variants.items() if own == changes)
            assert shown[column, row] == f"{100 * rates[variant].mean:.1f}"
        assert [t.get_text() for t in axes.get_yticklabels()] == [
            v if isinstance(v, str) else json.dumps(v).strip("[]") for v in grid[y]
        ]
        assert axes.images[0].get_clim()[0] == 0
        assert axes.images[0].get_clim() == maps[0].images[0].get_clim()
    assert len(maps) == max(1, len(variants) // (len(grid[x]) * len(grid[y])))


def test_a_line_stands_at_the_numbers_and_starts_at_zero(figures, tmp_path):
    grid = GRIDS["unordered"]
    variants = all_variants(NAMED, grid)
    rates = estimates(variants)
    draw_grid(tmp_path / "grid", rates, variants, grid)
    (axes,) = figures[0].axes
    places, means = axes.containers[0][0].get_data()
    assert places.tolist() == [2, 5, 8]
    assert means.tolist() == [pytest.approx(100 * rates[f"cfg_weight-{x}"].mean) for x in (2, 5, 8)]
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == list(NAMED)


def test_without_anything_that_varies_there_is_no_figure(tmp_path):
    variants = all_variants({}, {"alpha": [0.1]})
    assert not draw_grid(tmp_path / "grid", estimates(variants), variants, {"alpha": [0.1]})
    assert not [*tmp_path.iterdir()]
