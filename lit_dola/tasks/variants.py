"""The variants that ``evaluate`` compares: named ones, and every combination of a grid."""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

from lit_dola.errors import UserError
from lit_dola.tasks.base import JanusModule

Module = TypeVar("Module", bound=JanusModule)
Variants = dict[str, dict[str, Any]]
Grid = Mapping[str, Sequence[Any]]


def expand_grid(grid: Grid) -> Variants:
    """Return one variant for every combination of values, named after them.

    Raises:
        UserError: If a setting has no values, or two of them have the same name.

    Example:
        >>> list(expand_grid({"alpha": [0.02, 0.1], "mid_norm": [True]}))
        ['alpha-0.02-mid_norm-true', 'alpha-0.1-mid_norm-true']
    """
    for key, values in grid.items():
        if not values:
            raise UserError(f"grid.{key}: no values; expected a list, as [0.02, 0.1]")
    found: Variants = {}
    if not grid:
        return found
    for values in product(*grid.values()):
        changes = dict(zip(grid, values))
        name = "-".join(f"{key}-{label(value)}" for key, value in changes.items())
        if name in found:
            raise UserError(f"grid: {name} is there twice; expected different values")
        found[name] = changes
    return found


def label(value: Any, between: str = "-") -> str:
    """Return a value as it stands in the name of a variant, or in a figure.

    Args:
        value: The value of a setting.
        between: What stands between the parts of a list.

    Example:
        >>> label(True), label("union"), label([2.5, 3, 0.6])
        ('true', 'union', '2.5-3-0.6')
    """
    if isinstance(value, list | tuple):
        return between.join(label(part, between) for part in value)
    return value if isinstance(value, str) else json.dumps(value)


def make_variants(model: Module, variants: Variants) -> dict[str, Module]:
    """Create a model for each variant, all checked before anything is generated.

    Args:
        model: The model with the settings that all variants share.
        variants: What each variant changes, by its name.

    Raises:
        UserError: If there is no variant, or one is invalid.
    """
    common = {key: value for key, value in model.hparams.items() if not key.startswith("_")}
    models = {}
    for name, changes in variants.items():
        for key in changes:
            if key in model.shared:
                raise UserError(
                    f"variants.{name}: {key} applies to all variants; expected it in model"
                )
        try:
            models[name] = model.checked({**common, **changes})
        except UserError as error:
            raise UserError(f"variants.{name}: {error}") from error
    if not models:
        raise UserError("variants: empty; expected at least one, as {baseline: {dola: false}}")
    return models


def all_variants(variants: Variants, grid: Grid) -> Variants:
    """Return the named variants, then those of the grid.

    Raises:
        UserError: If a name is in both.
    """
    combinations = expand_grid(grid)
    for name in combinations.keys() & variants.keys():
        raise UserError(f"grid: {name} is also in variants; expected it in one of them")
    return {**variants, **combinations}
