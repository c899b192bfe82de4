"""Batches of a task: how large they are, what happens if one does not fit, and what they shape."""

from collections.abc import Callable, Mapping
from logging import getLogger
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from lit_dola.data.base import plan_of, shards_the_model
from lit_dola.data.plan import RunPlan
from lit_dola.decoding.loop import TokenGenerator
from lit_dola.decoding.prefill import PREFILL_BUCKET
from lit_dola.errors import RankError

EXACT = ("32-true", "64-true")
"""Precisions in which a result does not depend on its batch."""

_log = getLogger(__name__)
_HALVED = "; in %s they may differ slightly from those of whole batches: see their records"

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchModule(LightningModule):
    """Runs batches that may be larger than the memory.

    Args:
        model_path: As the setting ``model.model_path``.
        compile: As the setting ``model.compile``.
    """

    batch_setting = "images_per_batch"
    """The setting that says how many items a batch has."""
    items = "images"
    """What they are called."""
    generator: TokenGenerator
    """The token loop, once prediction starts."""

    def __init__(self, model_path: str, compile: bool | Literal["auto"]) -> None:
        super().__init__()
        self.model_path = model_path
        self.compile_step = compile
        self.at_once: int | None = None
        """Items per part, once a batch has run out of memory."""

    @property
    def plan(self) -> RunPlan:
        """The plan of the trainer's run."""
        return plan_of(self.trainer)

    def make_generator(self) -> TokenGenerator:
        """Return the task's token loop, with an empty cache."""
        raise NotImplementedError

    @property
    def compiles(self) -> bool:
        """Whether the decoding step is compiled."""
        if self.compile_step != "auto":
            return self.compile_step
        if self.plan.compile is not None:
            return self.plan.compile
        return self.device.type == "cuda" and not shards_the_model(self.trainer)

    @property
    def is_exact(self) -> bool:
        """Whether a result does not depend on its batch, in the trainer's precision."""
        return self.trainer.precision in EXACT

    def take_batching(self, plan: RunPlan, precision: str, earlier: Mapping[str, Any]) -> None:
        """In low precision, let ``auto`` mean what it meant in the run that is continued.

        Args:
            plan: The plan of the run.
            precision: That of the trainer.
            earlier: Settings of a result of the earlier run, as its record has them.
        """
        if precision in EXACT:
            return
        size, compiled = (earlier.get(name) for name in (self.batch_setting, "compile"))
        if plan.batch_size is None and type(size) is int and size > 0:
            plan.batch_size = size
        if type(compiled) is bool:
            plan.compile = compiled

    def batching(self) -> dict[str, Any]:
        """Return what else shapes a result in low precision; known once the model is loaded."""
        if self.is_exact:
            return {}
        return {
            self.batch_setting: self.plan.batch_size,
            "compile": self.compiles,
            "prefill_bucket": PREFILL_BUCKET,
        }

    @property
    def fill_to(self) -> int:
        """Results that a smaller batch is filled up to."""
        if self.is_exact or self.device.type != "cuda":
            return 1
        return self.at_once or self.plan.batch_size or 1

    def run_in_parts(self, batch: list[Item], run: Callable[[list[Item]], Result]) -> list[Result]:
        """Run a batch as a whole, or in smaller parts if it does not fit into memory.

        Raises:
            UserError: If a single item does not fit.
        """
        results: list[Result] = []
        rest, halved = batch, False
        while rest:
            count = self.at_once or len(rest)
            result = self._run_if_it_fits(rest[:count], run)
            if result is None:
                halved = True
                continue
            if halved:
                _log.warning(
                    "out of memory: continuing with at most %d %s at once%s",
                    self.at_once,
                    self.items,
                    "" if self.is_exact else _HALVED % self.trainer.precision,
                )
                halved = False
            results.append(result)
            rest = rest[count:]
        return results

    def _run_if_it_fits(
        self, part: list[Item], run: Callable[[list[Item]], Result]
    ) -> Result | None:
        """Return None if the part does not fit into memory."""
        try:
            return run(part)
        except RuntimeError as error:
            if not is_oom_error(error):
                raise
            items = max(len(part), self.fill_to)
            if items == 1 or shards_the_model(self.trainer):  # ranks must stay in step
                raise RankError(
                    self.out_of_memory(f"{items} {self.items.rstrip('s')}(s)")
                ) from error
        # After the handler, because the error keeps the tensors of its frames alive.
        self.at_once = items // 2
        del self.generator
        torch.compiler.reset()  # frees the memory of CUDA graphs
        garbage_collection_cuda()
        self.generator = self.make_generator()
        return None

    def out_of_memory(self, what: str) -> str:
        """Return the message for a lack of memory."""
        return (
            f"out of memory at {what} of {self.model_path} in {self.trainer.precision}; expected a"
            " device with more free memory, --trainer.precision bf16-true, --model.quantize int8wo,"
            f" --trainer.strategy fsdp2 on several GPUs, a smaller --model.{self.batch_setting} or"
            " model"
        )
