"""``lens``: trains readouts of middle layers; no weight of the model changes."""
