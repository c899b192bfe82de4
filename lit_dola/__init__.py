"""Batch text-to-image generation with Janus, sharpened at run time by DoLa-static."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_dola.pipeline import JanusPipeline

__version__ = "0.1.0"
__all__ = ["JanusPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the pipeline once it is asked for: the maths alone needs no Lightning."""
    if name == "JanusPipeline":
        from lit_dola.pipeline import JanusPipeline

        return JanusPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
