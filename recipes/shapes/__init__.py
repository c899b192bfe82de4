"""A small Janus that draws coloured shapes, and a program that reads what it drew."""
