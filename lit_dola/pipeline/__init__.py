"""Janus with DoLa-static from Python."""

from lit_dola.pipeline.janus_pipeline import JanusPipeline
from lit_dola.pipeline.shared_batches import ImageCall

__all__ = ["ImageCall", "JanusPipeline"]
