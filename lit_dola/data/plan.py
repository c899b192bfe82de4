"""The plan of a run: what it is to make, and with which model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lit_dola.data.requests import Failure, OnError, Request, Selection
from lit_dola.janus.checkpoint import Checkpoint, ModelFolder
from lit_dola.janus.tokenizer import PromptEncoder


@dataclass
class RunPlan:
    """What a run is to make, shared by the data module, the model and the callbacks.

    The data module creates it, the writer removes the images that are already done, and the model
    decides what the settings leave to it.
    """

    prompt_file: Path
    """For messages."""
    on_error: OnError
    """Whether an image that cannot be made ends the run or is skipped."""
    model: ModelFolder
    tokenizer: PromptEncoder | None
    """The tokenizer of a Janus; None for another model."""
    requests: Sequence[Request]
    """Results still to make; at first all that are asked for."""
    failures: list[Failure] = field(default_factory=list)
    """Entries of the prompt file that were skipped."""
    num_done: int = 0
    """Results that an earlier run has made."""
    batch_size: int | None = None
    """Results per batch; None until the model is loaded, if they depend on its memory."""
    per_entry: int = 1
    """Results per entry of the file, which are next to each other in ``requests``."""
    compile: bool | None = None
    """Whether the decoding step is compiled; None if the settings and the device decide."""

    def __post_init__(self) -> None:
        self.asked_for = self.requests
        """All results that are asked for, whether done or not."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The Janus of the run."""
        assert isinstance(self.model, Checkpoint)
        return self.model

    @property
    def encoder(self) -> PromptEncoder:
        """The tokenizer of that Janus."""
        assert self.tokenizer is not None
        return self.tokenizer

    @cached_property
    def longest_prompt(self) -> int:
        """Token ids of the longest prompt still to run."""
        return max(request.num_input_ids for request in self.requests)

    def keep(self, places: Sequence[int]) -> None:
        """Keep only the requests at these places: the others are done already."""
        self.num_done = len(self.requests) - len(places)
        if self.num_done:
            self.__dict__.pop("longest_prompt", None)
            self.requests = Selection(self.requests, places)
