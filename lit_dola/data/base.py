"""What the data modules of all tasks share: ranks, batches and the plan of the run."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, cast

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import OnError, Request, share
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


class RequestDataModule(LightningDataModule):
    """Batches the requests of a run; a task's own data module makes its plan in ``setup``.

    Args:
        model_path: As the setting ``data.model_path``.
        batch_size: Requests per batch; auto: as many as the model's memory allows.
        on_error: As the setting ``data.on_error``.
    """

    plan: RunPlan
    """What the run is to make; set by ``setup``."""

    def __init__(
        self, model_path: str, batch_size: int | Literal["auto"], on_error: OnError
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer requests than ranks
        self.model_path = model_path
        self.batch_size = batch_size
        self.on_error = on_error

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of a Janus, opened once."""
        return Checkpoint.open(self.model_path)

    @property
    def model(self) -> ModelFolder:
        """The model of the run."""
        return self.checkpoint

    def prepare_data(self) -> None:
        """Fetch the model, once per node, if it is not on this machine yet."""
        _ = self.model

    @property
    def is_first(self) -> bool:
        """Whether this process is the first rank."""
        return self.trainer is None or self.trainer.is_global_zero

    def predict_dataloader(self) -> DataLoader[list[Request]]:
        """Return batches of at most ``plan.batch_size`` requests."""
        trainer, plan = self.trainer, self.plan
        world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        sampler = ContiguousSampler(
            plan.requests, world_size, rank, even=trainer is not None and shards_the_model(trainer)
        )
        dataset = cast(Dataset[list[Request]], plan.requests)
        return DataLoader(
            dataset, batch_size=plan.batch_size or 1, sampler=sampler, collate_fn=list
        )

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leave requests on the host; the token loop moves the tensors that it needs."""
        return batch


def plan_of(trainer: Trainer) -> RunPlan:
    """Return the plan of a trainer's run: the only place that looks at ``trainer.datamodule``.

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
