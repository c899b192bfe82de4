"""Batch text-to-image generation with Janus, sharpened at run time by DoLa-static."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_dola.callbacks.writer import ImageWriter
    from lit_dola.data.prompts import PromptDataModule
    from lit_dola.errors import UserError
    from lit_dola.pipeline import JanusPipeline
    from lit_dola.tasks.generate import LitDoLa

__version__ = "0.3.0"
__all__ = [
    "ImageWriter",
    "JanusPipeline",
    "LitDoLa",
    "PromptDataModule",
    "UserError",
    "__version__",
]


def _choose_wait_policy() -> None:
    """Set how torch's threads wait for each other, unless the environment does.

    OpenMP reads these variables when torch is first imported. By its own default a waiting thread
    spins for so long that beside other work everything is 10 to 20 times slower. A little spinning
    serves the pauses of a decoding step; on a busy machine waiting threads sleep at once. See "A
    busy machine" in benchmarks/README.md. No result depends on it.
    """
    if os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        return
    busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)
    if busy:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = "10000"


_choose_wait_policy()

_MODULES = {
    "ImageWriter": "lit_dola.callbacks.writer",
    "JanusPipeline": "lit_dola.pipeline",
    "LitDoLa": "lit_dola.tasks.generate",
    "PromptDataModule": "lit_dola.data.prompts",
    "UserError": "lit_dola.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public class when it is first used: the maths alone needs no Lightning."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
