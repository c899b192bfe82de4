"""Recipes that made the small models of this repository."""

import lit_dola  # noqa: F401  before torch: it sets how its threads wait
