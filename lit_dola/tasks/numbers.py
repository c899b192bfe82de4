"""Types of settings that are numbers within a range, checked while the command line is parsed."""

import math
from typing import TYPE_CHECKING

from jsonargparse.typing import restricted_number_type

if TYPE_CHECKING:
    Fraction = float
    Finite = float
    PositiveFinite = float
    Seed = int
    Window = int
    Port = int
    Number = float
else:
    Number = restricted_number_type(
        "Number", float, [(">", -math.inf), ("<", math.inf)], join="and"
    )
    Finite = restricted_number_type("Finite", float, [(">=", 0), ("<", math.inf)])
    PositiveFinite = restricted_number_type("PositiveFinite", float, [(">", 0), ("<", math.inf)])
    Fraction = restricted_number_type("Fraction", float, [(">", 0), ("<=", 1)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
    Window = restricted_number_type("Window", int, [(">=", 2), ("<=", 1024)])
    Port = restricted_number_type("Port", int, [(">=", 1024), ("<", 65536)])
