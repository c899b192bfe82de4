"""Captioned pictures, drawn on demand: no picture is used twice."""

import random
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_dola.janus.vq import from_pillow
from recipes.shapes.render import render
from recipes.shapes.scene import IMAGE_SIZE, Object, Scene, describe, place_objects, sample_scene


class Batch(NamedTuple):
    """Pictures and their captions.

    Attributes:
        pixel_values: Float32 ``(pictures, 3, height, width)`` in [-1, 1].
        prompts: The captions.
        objects: What the pictures show.
        scenes: What the captions say.
    """

    pixel_values: Tensor
    prompts: list[str]
    objects: list[list[Object]]
    scenes: list[Scene]


Item = tuple[Tensor, str, list[Object], Scene]


class ShapesDataset(Dataset[Any]):
    """Pictures of the training combinations; a given index always has the same picture.

    Args:
        first: Index of the first picture.
        length: Number of pictures.
        seed: Seed of all pictures.
    """

    def __init__(self, first: int, length: int, seed: int) -> None:
        self.first, self.length, self.seed = first, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        rng = random.Random(f"{self.seed}/{self.first + index}")
        scene = sample_scene(rng)
        objects = place_objects(scene, rng)
        pixels = from_pillow(render(objects, rng), IMAGE_SIZE)
        return pixels, describe(scene, rng), objects, scene


def collate(items: list[Item]) -> Batch:
    """Collate pictures into a batch."""
    pictures, prompts, objects, scenes = zip(*items)
    return Batch(torch.stack(pictures), list(prompts), list(objects), list(scenes))


class ShapesDataModule(LightningDataModule):
    """New pictures every epoch; the trainer must reload the dataloader every epoch.

    Args:
        batch_size: Pictures per step, over all processes.
        steps_per_epoch: Steps between two checkpoints.
        seed: Seed of the pictures.
    """

    def __init__(self, batch_size: int = 32, steps_per_epoch: int = 100, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.steps_per_epoch, self.seed = batch_size, steps_per_epoch, seed

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the current epoch's pictures, so that a resumed run continues with new ones."""
        length = self.batch_size * self.steps_per_epoch
        epoch = self.trainer.current_epoch if self.trainer else 0
        dataset = ShapesDataset(epoch * length, length, self.seed)
        processes = self.trainer.world_size if self.trainer else 1
        return DataLoader(dataset, self.batch_size // processes, collate_fn=collate)

    def transfer_batch_to_device(self, batch: Batch, device: Any, dataloader_idx: int) -> Batch:
        """Move the pictures; the rest stays on the host."""
        return batch._replace(pixel_values=batch.pixel_values.to(device))
