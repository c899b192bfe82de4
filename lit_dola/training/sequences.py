"""Sequences to train lenses on: the prompts and tokens of finished runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jsonargparse.typing import OpenUnitInterval, PositiveInt
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_dola.data.prompts import encoder_of
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.tokenizer import PromptEncoder, Roles
from lit_dola.runs.image_file import tokens_file
from lit_dola.runs.records import ImageRecord
from lit_dola.settings.checks import given_path


class ImageSequence(NamedTuple):
    """A prompt and the tokens of one of its images."""

    input_ids: Sequence[int]
    tokens: Tensor
    """Int64 ``(num_image_tokens,)``."""


class _Sequences(Dataset[ImageSequence]):
    """Sequences whose tokens are read when they are needed."""

    def __init__(self, files: Sequence[tuple[Sequence[int], Path]], length: int) -> None:
        self.files, self.length = files, length

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> ImageSequence:
        ids, path = self.files[place]
        try:
            tokens = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"not readable as tokens: {error}", at=path) from error
        if tokens.shape != (self.length,):
            raise UserError(f"tokens of shape {tokens.shape}", f"({self.length},)", at=path)
        return ImageSequence(ids, torch.from_numpy(tokens).long())


class LensDataModule(LightningDataModule):
    """Reads the prompts and tokens of runs.

    Args:
        runs: Folders of runs of predict with ``writer.save_tokens``, of the same checkpoint: images
            as the model draws them.
        batch_size: Sequences per step and device.
        held_out: Share of the prompts that is held out, to measure how well the lenses read.
    """

    def __init__(
        self,
        runs: list[str] | None = None,
        batch_size: PositiveInt = 8,
        held_out: OpenUnitInterval = 0.1,
    ) -> None:
        super().__init__()
        self.runs = [given_path("data.runs", run) for run in runs or ()]
        self.batch_size = batch_size
        self.held_out = held_out
        if not self.runs:
            raise UserError("empty", "folders of runs", setting="data.runs")

    def prepare(self, checkpoint: Checkpoint, roles: Roles) -> PromptEncoder:
        """Find the sequences of a checkpoint, and return its tokenizer.

        Raises:
            UserError: If there are none, or they are of another checkpoint.
        """
        encoder = encoder_of(checkpoint, roles)
        by_prompt: dict[str, list[Path]] = {}
        for run in self.runs:
            for prompt, path in _images_of(run, checkpoint):
                by_prompt.setdefault(prompt, []).append(path)
        if len(by_prompt) < 2:
            raise UserError(
                f"images of {len(by_prompt)} prompt(s)", "several prompts", setting="data.runs"
            )
        files = {prompt: (encoder.encode(prompt), paths) for prompt, paths in by_prompt.items()}
        prompts = sorted(files)
        kept = round(len(prompts) * self.held_out) or 1
        # Spread over the file, which may be sorted by what the prompts are about.
        out = {prompts[place * len(prompts) // kept] for place in range(kept)}
        length = checkpoint.num_image_tokens
        self.train, self.validation = (
            _Sequences(
                [(ids, path) for prompt, (ids, paths) in files.items() for path in paths
                 if (prompt in out) is held],
                length,
            )
            for held in (False, True)
        )  # fmt: skip
        return encoder

    def train_dataloader(self) -> DataLoader[ImageSequence]:
        """Return batches of shuffled sequences."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[ImageSequence]:
        """Return batches of held-out sequences."""
        return self._loader(self.validation, shuffle=False)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leave sequences on the host; the module moves what it needs."""
        return batch

    def _loader(self, sequences: _Sequences, shuffle: bool) -> DataLoader[ImageSequence]:
        return DataLoader(
            cast("Dataset[ImageSequence]", sequences),
            batch_size=self.batch_size,
            shuffle=shuffle,
            collate_fn=list,
        )


def _images_of(run: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """Yield the prompt of each image of a run, and the file of its tokens."""
    found = False
    for record in ImageRecord.read(run):
        if record.settings.get("checkpoint") != checkpoint.fingerprint:
            raise UserError(
                f"{run}: images of another checkpoint", f"those of {checkpoint.name}",
                setting="data.runs",
            )  # fmt: skip
        path = run / tokens_file(record.file)
        if not path.is_file():
            raise UserError(
                f"{run}: {path.name} of {record.file} not found",
                "a run with --writer.save_tokens true",
                setting="data.runs",
                mentions=("writer.save_tokens",),
            )
        found = True
        yield record.prompt, path
    if not found:
        raise UserError(f"{run}: no images", "the folder of a run of predict", setting="data.runs")
