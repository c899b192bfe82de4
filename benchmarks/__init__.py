"""Benchmarks; see README.md."""

import lit_dola  # noqa: F401  before torch: it sets how its threads wait
