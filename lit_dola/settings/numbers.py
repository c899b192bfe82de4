"""Types of settings that are numbers within a range, checked while the command line is parsed."""

import math
from typing import TYPE_CHECKING

from jsonargparse.typing import restricted_number_type

MAX_SEED = 2**32 - 1

if TYPE_CHECKING:
    FiniteFloat = float
    NonNegativeFinite = float
    GuidanceScale = float
    PositiveFinite = float
    PositiveFraction = float
    Seed = int
    Window = int
    Port = int
    Quality = int
else:
    _number = restricted_number_type
    FiniteFloat = _number("FiniteFloat", float, [(">", -math.inf), ("<", math.inf)], join="and")
    NonNegativeFinite = _number("NonNegativeFinite", float, [(">=", 0), ("<", math.inf)])
    # Far more than guides anything; the scores still fit into float32.
    GuidanceScale = _number("GuidanceScale", float, [(">=", 0), ("<=", 1e6)])
    PositiveFinite = _number("PositiveFinite", float, [(">", 0), ("<", math.inf)])
    PositiveFraction = _number("PositiveFraction", float, [(">", 0), ("<=", 1)])
    Seed = _number("Seed", int, [(">=", 0), ("<", 2**32)])
    Window = _number("Window", int, [(">=", 2), ("<=", 1024)])
    Port = _number("Port", int, [(">=", 1024), ("<", 65536)])
    Quality = _number("Quality", int, [(">=", 1), ("<=", 100)])
