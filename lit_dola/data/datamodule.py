"""The LightningDataModule: reads prompts, and shares the images to make among ranks and batches."""

import math
from collections.abc import Iterator
from functools import cached_property
from logging import getLogger
from typing import Any, Literal, cast

from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from lit_dola.data.prompt_file import read_prompts
from lit_dola.data.requests import Failure, ImageRequest, OnError, Prompt, RunPlan
from lit_dola.errors import UserError, given_path
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.tokenizer import PromptEncoder, Roles

_log = getLogger(__name__)


def encoder_of(checkpoint: Checkpoint, roles: Roles, note: bool = True) -> PromptEncoder:
    """Return the tokenizer of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        roles: Role names of the conversation template.
        note: Whether to log which roles ``auto`` has guessed.

    Raises:
        UserError: As :class:`lit_dola.janus.tokenizer.PromptEncoder`.
    """
    vocab_size = int(checkpoint.config.text_config.vocab_size)
    encoder = PromptEncoder(checkpoint.folder, roles, checkpoint.name, vocab_size)
    if note and encoder.chosen_by:
        _log.warning(
            "model.roles: %s, chosen by the name %s; set pro or base if that is wrong",
            encoder.roles,
            encoder.chosen_by,
        )
    return encoder


class ContiguousSampler(DistributedSampler[ImageRequest]):
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
        self, requests: list[ImageRequest], world_size: int, rank: int, even: bool = False
    ) -> None:
        super().__init__(cast(Any, requests), world_size, rank, shuffle=False)
        count = len(requests)
        if even:
            size = math.ceil(count / world_size)
            share = range(rank * size, (rank + 1) * size)
            self.indices = [min(index, count - 1) for index in share]
        else:
            self.indices = [*range(count * rank // world_size, count * (rank + 1) // world_size)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class PromptDataModule(LightningDataModule):
    """Reads prompts and batches the images to make of them.

    Args:
        prompt_json: Prompt file: JSON (a list of strings, a list of objects with ``prompt``,
            ``text`` or ``caption``, or an object id -> prompt), JSON Lines (``.jsonl``), plain text
            with one prompt per line (``.txt``), or a folder of text files with one prompt per file.
        model_path: Checkpoint whose tokenizer encodes the prompts and whose context limits them.
        roles: Role names of the conversation template.
        parallel_size: Images per prompt.
        images_per_batch: Images per batch; auto: as many as the model's memory allows.
        on_error: What to do with a bad entry of the prompt file: stop before anything is generated,
            or skip it, list it in ``errors.jsonl`` and continue with the others. The same holds for
            an image whose logits are not finite, which only shows while it is made.
    """

    plan: RunPlan
    """What the run is to make; set by :meth:`setup`."""

    def __init__(
        self,
        prompt_json: str = "prompt.json",
        model_path: str = "deepseek-ai/Janus-Pro-7B",
        roles: Roles = "auto",
        parallel_size: PositiveInt = 8,
        images_per_batch: PositiveInt | Literal["auto"] = "auto",
        on_error: OnError = "stop",
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images than ranks
        self.prompt_json = given_path("data.prompt_json", prompt_json)
        self.model_path = model_path
        self.roles = roles
        self.parallel_size = parallel_size
        self.images_per_batch = images_per_batch
        self.on_error = on_error

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, opened once."""
        return Checkpoint.open(self.model_path)

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The checkpoint's tokenizer, read once."""
        is_first = self.trainer is None or self.trainer.is_global_zero
        return encoder_of(self.checkpoint, self.roles, note=is_first)

    def prepare_data(self) -> None:
        """Fetch the checkpoint, once per node, if it is not on this machine yet."""
        _ = self.checkpoint

    def setup(self, stage: str) -> None:
        """Read and encode every prompt.

        Raises:
            UserError: If the prompt file is unusable, or a prompt is too long.
        """
        failures: list[Failure] = []
        skipped = failures if self.on_error == "skip" else None
        requests: list[ImageRequest] = []
        for prompt in self.read_prompts(skipped):
            input_ids = self.encoder.encode(prompt.text)
            if reason := self._too_long(prompt, len(input_ids)):
                if skipped is None:
                    raise UserError(f"{self.prompt_json}: {reason}")
                skipped.append(Failure(prompt.prompt_index, None, prompt.text, reason))
                continue
            requests += [
                ImageRequest(prompt, image_index, input_ids)
                for image_index in range(self.parallel_size)
            ]
        # Prompts of similar length share a batch, which then attends to fewer slots.
        requests.sort(key=lambda request: len(request.input_ids))
        self.plan = RunPlan(
            self.prompt_json,
            self.on_error,
            self.checkpoint,
            self.encoder,
            requests,
            failures,
            images_per_batch=None if self.images_per_batch == "auto" else self.images_per_batch,
        )

    def _too_long(self, prompt: Prompt, length: int) -> str | None:
        """Say why a prompt of so many token ids does not fit into the model's context."""
        context, image = self.checkpoint.context_length, self.checkpoint.num_image_tokens
        if length <= context - image:
            return None
        return (
            f"entry {prompt.prompt_index}: prompt has {length} tokens; expected at most"
            f" {context - image} (the model's context of {context} minus its {image} image tokens)"
        )

    def read_prompts(self, skipped: list[Failure] | None) -> list[Prompt]:
        """Read the prompts; bad entries go to ``skipped``, or are an error if it is None."""
        return read_prompts(self.prompt_json, skipped)

    def predict_dataloader(self) -> DataLoader[list[ImageRequest]]:
        """Return batches of at most ``plan.images_per_batch`` requests."""
        trainer, plan = self.trainer, self.plan
        world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        share = ContiguousSampler(
            plan.requests, world_size, rank, even=trainer is not None and shards_the_model(trainer)
        )
        dataset = cast(Dataset[list[ImageRequest]], plan.requests)
        return DataLoader(
            dataset, batch_size=plan.images_per_batch or 1, sampler=share, collate_fn=list
        )

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leave requests on the host; the token loop moves the tensors that it needs."""
        return batch


def plan_of(trainer: Trainer) -> RunPlan:
    """Return the plan of a trainer's run: the only place that looks at ``trainer.datamodule``.

    Raises:
        TypeError: If the trainer's data module is not a :class:`PromptDataModule`.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, PromptDataModule):
        raise TypeError(f"the trainer's datamodule is {data!r}; expected a PromptDataModule")
    return data.plan


def shards_the_model(trainer: Trainer) -> bool:
    """Return whether each rank holds a part of the model, so that all must run the same steps."""
    return isinstance(trainer.strategy, ModelParallelStrategy)
