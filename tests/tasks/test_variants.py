"""Named variants, and the combinations of a grid."""

import pytest

from lit_dola import LitDoLa, UserError
from lit_dola.evaluation.variants import all_variants, expand_grid, make_variants
from lit_dola.runs.files import safe_name


def test_every_combination_is_a_variant_named_after_it():
    grid = {"alpha": [0.02, 1e-05], "mid_norm": [True, False], "apc": ["union"]}
    found = expand_grid(grid)
    assert found["alpha-0.02-mid_norm-true-apc-union"] == {
        "alpha": 0.02,
        "mid_norm": True,
        "apc": "union",
    }
    assert list(found) == [
        f"alpha-{alpha}-mid_norm-{flag}-apc-union"
        for alpha in ("0.02", "1e-05")
        for flag in ("true", "false")
    ]
    assert expand_grid({}) == {}


def test_names_are_safe_for_every_kind_of_value():
    grid = {
        "entropy_temperature": [[2.5, 3, 0.6], None],
        "layer": [None, 3],
        "cfg_weight": [1, 2.5],
        "alpha": [0, 1e-300],
        "dola": [True],
    }
    models = make_variants(LitDoLa(), expand_grid(grid))
    assert len(models) == 16
    assert all(safe_name(name) == name for name in models)
    model = models["entropy_temperature-2.5-3-0.6-layer-3-cfg_weight-2.5-alpha-0-dola-true"]
    assert model.scoring.entropy_temperature == (2.5, 3, 0.6)
    assert (model.layer, model.scoring.cfg_weight, model.scoring.alpha) == (3, 2.5, 0)


@pytest.mark.parametrize(
    ("variants", "grid", "message"),
    [
        ({}, {}, "variants: empty"),
        ({}, {"alpha": []}, "grid.alpha: no values"),
        ({}, {"alpha": [0.1, 0.1]}, "grid: alpha-0.1 occurs twice"),
        ({"alpha-0.1": {}}, {"alpha": [0.1]}, "grid: alpha-0.1 is also in variants"),
        ({}, {"alhpa": [0.1]}, "variants.alhpa-0.1: alhpa: not a setting"),
        ({}, {"alpha": [2]}, "variants.alpha-2: .*alpha"),
        ({}, {"seed": [1]}, "variants.seed-1: seed applies to all variants"),
    ],
)
def test_what_cannot_be_is_an_error(variants, grid, message):
    with pytest.raises(UserError, match=message):
        make_variants(LitDoLa(), all_variants(variants, grid))


def test_named_variants_come_first():
    assert list(all_variants({"b": {}, "a": {}}, {"alpha": [0.1]})) == ["b", "a", "alpha-0.1"]
