"""The data module of any task: ranks, batches and the plan of the run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol, cast

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure, OnError, Request, share
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint, ModelFolder


class ContiguousSampler(DistributedSampler[Request]):
    """Gives each rank one contiguous part of the requests, each request to exactly one rank.

    A rank's part may be empty. PyTorch's own sampler would repeat requests, and Lightning's needs
    at least one request per rank.

    Args:
        requests: All requests, the same on every rank.
        world_size: Number of ranks.
        rank: This rank.
        even: Give every rank the same number of requests by repeating the last one, for strategies
            whose ranks must run the same number of steps.
    """

    def __init__(
        self, requests: Sequence[Request], world_size: int, rank: int, even: bool = False
    ) -> None:
        super().__init__(cast(Any, requests), world_size, rank, shuffle=False)
        count = len(requests)
        self.indices = cast("list[int]", share(count, world_size, rank))
        if even:
            size = math.ceil(count / world_size)
            self.indices = [
                min(place, count - 1) for place in range(rank * size, (rank + 1) * size)
            ]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class TaskModule(Protocol):
    """The module of a task, as its data module sees it."""

    @property
    def hparams(self) -> Any:
        """Its settings by name."""

    def open_model(self) -> ModelFolder:
        """Open the checkpoint."""


class RequestDataModule(LightningDataModule):
    """Batches the requests of a run; a task's own data module creates its plan in ``setup``.

    Settings of the model that shape requests come from the module that the trainer runs, or from
    the one given to :meth:`attach`.

    Args:
        batch_setting: The model's setting for the number of requests per batch.
        on_error: As the setting ``data.on_error``.
    """

    plan: RunPlan
    """The plan of the run; set by ``setup``."""

    def __init__(self, batch_setting: str, on_error: OnError) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer requests than ranks
        self.on_error = on_error
        self.batch_size: int | Literal["auto"] | None = None
        """Requests per batch; None: as the model's setting says."""
        self._batch_setting = batch_setting
        self._module: TaskModule | None = None

    def attach(self, module: TaskModule) -> None:
        """Prepare requests for a module, without a trainer or before it runs."""
        self._module = module

    @property
    def module(self) -> TaskModule:
        """The module that the requests are for."""
        if self._module is not None:
            return self._module
        assert self.trainer is not None
        return cast(TaskModule, self.trainer.lightning_module)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the model, by name."""
        return cast("Mapping[str, Any]", self.module.hparams)

    @cached_property
    def model(self) -> ModelFolder:
        """The model of the run, opened once."""
        return self.module.open_model()

    @property
    def checkpoint(self) -> Checkpoint:
        """The Janus of the run."""
        assert isinstance(self.model, Checkpoint)
        return self.model

    def prepare_data(self) -> None:
        """Fetch the model, once per node, if it is not on this machine yet."""
        _ = self.model

    @property
    def is_first(self) -> bool:
        """Return whether this process is the first rank."""
        return self.trainer is None or self.trainer.is_global_zero

    def make_plan(self, file: Any, requests: Sequence[Request], **more: Any) -> RunPlan:
        """Return the plan of a run."""
        size = self.batch_size or self.settings.get(self._batch_setting, "auto")
        return RunPlan(
            file,
            self.on_error,
            self.model,
            requests=requests,
            batch_size=None if size == "auto" else int(size),
            **more,
        )

    def predict_dataloader(self) -> DataLoader[list[Request]]:
        """Return batches of at most ``plan.per_step`` requests."""
        trainer, plan = self.trainer, self.plan
        world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        sampler = ContiguousSampler(
            plan.requests, world_size, rank, even=trainer is not None and shards_the_model(trainer)
        )
        dataset = cast(Dataset[list[Request]], plan.requests)
        return DataLoader(dataset, batch_size=plan.per_step or 1, sampler=sampler, collate_fn=list)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leave requests on the host; the token loop moves the tensors that it needs."""
        return batch


class BadEntries:
    """Entries that cannot be used: skipped and collected, or an error.

    Args:
        on_error: As the setting ``data.on_error``.
    """

    def __init__(self, on_error: OnError) -> None:
        self.found: list[Failure] = []
        self.skipped = self.found if on_error == "skip" else None
        """Receives entries that the reader of a file skips; None: they are errors."""

    def add(self, entry: Any, error: UserError, file: Any) -> None:
        """Skip an entry, or raise its error in the context of its file."""
        error = error.within(f"entry {entry.index}")
        if self.skipped is None:
            raise error.within(file) from error
        self.found.append(Failure.of_entry(entry, str(error)))


def plan_of(trainer: Trainer) -> RunPlan:
    """Return the plan of a trainer's run.

    Raises:
        TypeError: If the trainer's data module is not a :class:`RequestDataModule`.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, RequestDataModule):
        raise TypeError(f"the trainer's datamodule is {data!r}; expected a RequestDataModule")
    return data.plan


def shards_the_model(trainer: Trainer) -> bool:
    """Return whether each rank holds a part of the model, so that all must run the same steps."""
    return isinstance(trainer.strategy, ModelParallelStrategy)
