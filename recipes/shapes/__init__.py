"""A small Janus that draws coloured shapes, and a scorer for its pictures."""
