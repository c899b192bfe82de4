"""Batch text-to-image generation with Janus, sharpened at run time by DoLa-static."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_dola.callbacks.writer import ImageWriter
    from lit_dola.data.datamodule import PromptDataModule
    from lit_dola.errors import UserError
    from lit_dola.pipeline import JanusPipeline
    from lit_dola.tasks.generate import LitDoLa

__version__ = "0.2.0"
__all__ = [
    "ImageWriter",
    "JanusPipeline",
    "LitDoLa",
    "PromptDataModule",
    "UserError",
    "__version__",
]

_MODULES = {
    "ImageWriter": "lit_dola.callbacks.writer",
    "JanusPipeline": "lit_dola.pipeline",
    "LitDoLa": "lit_dola.tasks.generate",
    "PromptDataModule": "lit_dola.data.datamodule",
    "UserError": "lit_dola.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public class when it is first used: the maths alone needs no Lightning."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
