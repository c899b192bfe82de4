"""Janus with DoLa-static from Python."""

from lit_dola.pipeline.calls import ImageCall
from lit_dola.pipeline.janus_pipeline import JanusPipeline

__all__ = ["ImageCall", "JanusPipeline"]
