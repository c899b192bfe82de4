"""The variants that ``evaluate`` compares: named ones, and every combination of a grid."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

from lit_dola.errors import UserError, within
from lit_dola.messages import label
from lit_dola.tasks.base import JanusModule

Module = TypeVar("Module", bound=JanusModule)
Variants = dict[str, dict[str, Any]]
Grid = Mapping[str, Sequence[Any]]


def expand_grid(grid: Grid) -> Variants:
    """Return one variant for every combination of values, named after them.

    Example:
        >>> list(expand_grid({"alpha": [0.02, 0.1], "mid_norm": [True]}))
        ['alpha-0.02-mid_norm-true', 'alpha-0.1-mid_norm-true']
    """
    for key, values in grid.items():
        if not values:
            raise UserError("no values", "a list, e.g. [0.02, 0.1]", setting=f"grid.{key}")
    found: Variants = {}
    if not grid:
        return found
    for values in product(*grid.values()):
        changes = dict(zip(grid, values))
        name = "-".join(f"{key}-{label(value)}" for key, value in changes.items())
        if name in found:
            raise UserError(f"{name} occurs twice", "different values", setting="grid")
        found[name] = changes
    return found


def make_variants(model: Module, variants: Variants) -> dict[str, Module]:
    """Create a model for each variant, all checked before anything is generated.

    Args:
        model: The model with the settings that all variants share.
        variants: Changes of each variant, by its name.
    """
    common = model.hparams
    models = {}
    for name, changes in variants.items():
        for key in changes:
            if key in model.shared:
                raise UserError(
                    f"{key} applies to all variants", "it in model", setting=f"variants.{name}"
                )
        with within(f"variants.{name}"):
            models[name] = model.checked({**common, **changes})
    if not models:
        raise UserError("empty", "at least one, e.g. {baseline: {dola: false}}", setting="variants")
    return models


def all_variants(variants: Variants, grid: Grid) -> Variants:
    """Return the named variants, then those of the grid."""
    combinations = expand_grid(grid)
    for name in combinations.keys() & variants.keys():
        raise UserError(f"{name} is also in variants", "it in one of them", setting="grid")
    return {**variants, **combinations}
