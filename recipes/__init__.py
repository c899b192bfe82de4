"""How the small models of this repository were made."""

import lit_dola  # noqa: F401  before torch: it sets how its threads wait
