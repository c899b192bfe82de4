"""The plan of a run: requested results and the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lit_dola.data.requests import Failure, OnError, Request, Selection
from lit_dola.janus.checkpoint import Checkpoint, ModelFolder
from lit_dola.janus.tokenizer import PromptEncoder


@dataclass
class RunPlan:
    """Requested results and their model, shared by the data module, the model and the callbacks.

    The data module creates it, the writer removes results that are done, and the model fills in
    what the settings leave to it.
    """

    entry_file: Path
    """The file of the entries, for messages."""
    on_error: OnError
    """Stop at a result that cannot be generated, or skip it."""
    model: ModelFolder
    requests: Sequence[Request]
    """Results still to generate; at first all that are asked for."""
    tokenizer: PromptEncoder | None = None
    """The tokenizer of a Janus; None for another model."""
    failures: list[Failure] = field(default_factory=list)
    """Skipped entries of the file."""
    num_done: int = 0
    """Results of an earlier run."""
    batch_size: int | None = None
    """Results per batch; None until the model is loaded, if they depend on its memory."""
    rounds: int = 1
    """Batches that a predict step takes together: a row whose result is complete takes the next."""
    entry_starts: Sequence[int] | None = None
    """Positions of the first result of each entry in ``requests``, at first; None: one each."""
    ranked_run: Path | None = None
    """The run whose images are ranked, if any."""
    compile: bool | None = None
    """Compiled or eager decoding step; None: as the settings and the device say."""

    def __post_init__(self) -> None:
        self.asked_for = self.requests
        """All results that are asked for, done or not."""

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

    @property
    def per_step(self) -> int | None:
        """Results per predict step; None as long as the size of a batch is."""
        return self.batch_size and self.batch_size * self.rounds

    @cached_property
    def longest_prompt(self) -> int:
        """Token ids of the longest prompt still to run."""
        return max(request.num_input_ids for request in self.requests)

    def keep(self, places: Sequence[int]) -> None:
        """Keep only the requests at these positions: the others are done."""
        self.num_done = len(self.requests) - len(places)
        if self.num_done:
            self.__dict__.pop("longest_prompt", None)
            self.requests = Selection(self.requests, places)
