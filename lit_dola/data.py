"""The images that are asked for: dealt out to ranks, batch by batch."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from lit_dola.checkpoint import load_config
from lit_dola.decoding import ImageKey
from lit_dola.errors import UserError
from lit_dola.janus import find_checkpoint
from lit_dola.prompt import PromptEncoder, Roles
from lit_dola.prompt_file import Failure, Prompt, read_prompts


class ImageRequest(NamedTuple):
    """One image to make."""

    prompt: Prompt
    image_index: int
    """Number among the images of its prompt, from 0."""
    input_ids: list[int]
    """Token ids of the prompt, from BOS to begin of image."""

    @property
    def key(self) -> ImageKey:
        """The key of its random stream."""
        return ImageKey(self.prompt.prompt_index, self.image_index)


class RankShare(DistributedSampler[ImageRequest]):
    """The requests of one rank: every request on one rank, and neighbours together.

    A rank may have none. PyTorch's own sampler would repeat some, and Lightning's wants one request
    a rank at least.

    Args:
        requests: All requests, the same on every rank.
        world_size: Number of ranks.
        rank: This one.
        even: Give all ranks as many, by repeating the last request: for strategies whose ranks must
            run the same number of steps.
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
    """Reads prompts and deals out the images to make, batch by batch.

    Args:
        prompt_json: Prompt file: JSON (a list of strings, a list of objects with ``prompt``,
            ``text`` or ``caption``, or an object id -> prompt), JSON Lines (``.jsonl``), plain
            text, a prompt a line (``.txt``), or a folder of such texts, a prompt a file.
        model_path: Checkpoint whose tokenizer and context length the prompts are held against.
        roles: Role names of the conversation template.
        parallel_size: Images a prompt.
        images_per_batch: Images a batch; auto asks the model.
        on_error: What a bad entry of the prompt file does: stop the run before anything is
            generated, or skip, which lists it in ``errors.jsonl`` and goes on with the others. An
            image whose logits are not finite likewise, but that only shows when it is made.
    """

    def __init__(
        self,
        prompt_json: str = "prompt.json",
        model_path: str = "deepseek-ai/Janus-Pro-7B",
        roles: Roles = "auto",
        parallel_size: PositiveInt = 8,
        images_per_batch: PositiveInt | Literal["auto"] = "auto",
        on_error: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images than ranks
        self.prompt_json = Path(prompt_json).expanduser()
        self.model_path = model_path
        self.roles = roles
        self.parallel_size = parallel_size
        self.images_per_batch = images_per_batch
        self.on_error = on_error
        self.requests: list[ImageRequest] = []
        self.failures: list[Failure] = []
        """Entries that were skipped."""
        self.num_done = 0
        """Images that an earlier run has made."""

    def prepare_data(self) -> None:
        """Fetch the checkpoint, where it is not on this machine yet, once a node."""
        find_checkpoint(self.model_path)

    def setup(self, stage: str) -> None:
        """Read and encode every prompt.

        Raises:
            UserError: If the prompt file is not as it should be, or a prompt is too long.
        """
        self.failures = []
        skipped = self.failures if self.on_error == "skip" else None
        prompts = self.read_prompts(skipped)
        checkpoint = find_checkpoint(self.model_path)
        encoder = PromptEncoder(checkpoint, self.roles, name=self.model_path)
        config, _ = load_config(checkpoint)
        context = config.text_config.max_position_embeddings
        longest = context - config.vision_config.num_image_tokens
        self.requests = []
        for prompt in prompts:
            input_ids = encoder.encode(prompt.text)
            if len(input_ids) > longest:
                reason = (
                    f"entry {prompt.prompt_index}: prompt has"
                    f" {len(input_ids)} tokens; expected at most {longest} (the model's context of"
                    f" {context} less its {config.vision_config.num_image_tokens} image tokens)"
                )
                if skipped is None:
                    raise UserError(f"{self.prompt_json}: {reason}")
                skipped.append(Failure(prompt.prompt_index, None, prompt.text, reason))
                continue
            self.requests += [
                ImageRequest(prompt, image_index, input_ids)
                for image_index in range(self.parallel_size)
            ]
        # Prompts of like length share a batch, for the sake of less padding.
        self.requests.sort(key=lambda request: len(request.input_ids))

    def read_prompts(self, skipped: list[Failure] | None) -> list[Prompt]:
        """The prompts; bad entries go to ``skipped``, or end the reading if it is None."""
        return read_prompts(self.prompt_json, skipped)

    def keep_requests(self, places: list[int]) -> None:
        """Keep some of the requests only: the others are done already."""
        self.num_done = len(self.requests) - len(places)
        self.requests = [self.requests[place] for place in places]

    def predict_dataloader(self) -> DataLoader[list[ImageRequest]]:
        """Batches of at most ``images_per_batch`` requests."""
        trainer = self.trainer
        world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        share = RankShare(self.requests, world_size, rank, even=shards_the_model(trainer))
        if self.images_per_batch != "auto":
            batch_size = self.images_per_batch
        elif len(share) == 0:
            batch_size = 1
        else:
            fitting = cast(Any, trainer).lightning_module.images_that_fit(self.requests)
            batch_size = min(fitting, len(share))
        dataset = cast(Dataset[list[ImageRequest]], self.requests)
        return DataLoader(dataset, batch_size=batch_size, sampler=share, collate_fn=list)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Requests stay on the host; the token loop moves what it needs."""
        return batch


def shards_the_model(trainer: Trainer | None) -> bool:
    """Whether each rank holds a part of the model, so that all must run the same steps."""
    return trainer is not None and isinstance(trainer.strategy, ModelParallelStrategy)
