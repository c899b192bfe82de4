"""Janus with DoLa-static from Python."""

from lit_dola.pipeline.janus_pipeline import JanusPipeline

__all__ = ["JanusPipeline"]
