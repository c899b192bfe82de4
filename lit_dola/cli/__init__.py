"""The command line."""

from lit_dola.cli.entry import main

__all__ = ["main"]
