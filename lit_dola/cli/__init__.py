"""The command line."""

from lit_dola.cli.command import main

__all__ = ["main"]
