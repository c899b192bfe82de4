"""The module of a task that looks at pictures, with a Janus' understanding path."""

from typing import Any

from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import load_understanding
from lit_dola.janus.pixels import PixelProcessor, Preprocess
from lit_dola.janus.question import SYSTEM_PROMPT
from lit_dola.janus.understanding import UnderstandingJanus
from lit_dola.tasks.base import JanusModule


class UnderstandingModule(JanusModule):
    """Module of a task that looks at pictures.

    Args:
        preprocess: Which resize rounding to follow for pictures: deepseek's or transformers'.
        system_prompt: Start of the conversation with a Janus; empty: none.
        settings: Settings of all tasks.
    """

    shared = (*JanusModule.shared, "system_prompt", "preprocess")
    texts = ("system_prompt",)
    janus: UnderstandingJanus

    def __init__(
        self,
        *,
        preprocess: Preprocess = "deepseek",
        system_prompt: str = SYSTEM_PROMPT,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.preprocess = preprocess

    def setup(self, stage: str) -> None:
        """Check the settings before anything is loaded."""
        super().setup(stage)
        if isinstance(self.plan.model, Checkpoint):
            self.pixels = PixelProcessor.of_checkpoint(self.plan.model, self.preprocess)

    def load(self, checkpoint: Checkpoint, **options: Any) -> UnderstandingJanus:
        """Load the vision tower, the aligner, the language model and the text head."""
        return load_understanding(checkpoint, **options)
