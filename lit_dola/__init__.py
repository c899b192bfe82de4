"""Batch text-to-image generation with Janus, sharpened at run time by DoLa-static."""

__version__ = "0.1.0"
