"""Sending images to the trainer's loggers; Lightning itself sends the settings."""

from typing import Any

from jsonargparse.typing import NonNegativeInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lit_dola.callbacks.run_writer import find_writer
from lit_dola.janus.vq import to_pillow
from lit_dola.tasks.generate import GeneratedImage, GeneratedImages


class ImageLogger(Callback):
    """Sends images to TensorBoard or Weights & Biases, if ``trainer.logger`` is one of them.

    They are logged under the name of the run's folder. With several devices only the first one
    logs its images.

    Args:
        max_images: The most images to log per run.
    """

    def __init__(self, max_images: NonNegativeInt = 64) -> None:
        self.max_images = max_images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start counting."""
        self._left = self.max_images

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: GeneratedImages,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Log the images of a batch."""
        if not trainer.is_global_zero:
            return
        images = outputs.images[: self._left]
        self._left -= len(images)
        writer = find_writer(trainer)
        run = writer.output_dir.name if writer else "images"
        for logger in trainer.loggers if images else ():
            if isinstance(logger, TensorBoardLogger):
                _to_tensorboard(logger, run, images)
            elif isinstance(logger, WandbLogger):
                _to_wandb(logger, run, images)


def _to_tensorboard(logger: TensorBoardLogger, run: str, images: list[GeneratedImage]) -> None:
    """Log one tag per prompt; its images are the tag's steps."""
    for image in images:
        entry, step = image.request.entry, image.request.image_index
        tag = f"{run}/{entry.index:05}"
        logger.experiment.add_image(tag, image.pixels, step)
        logger.experiment.add_text(tag, entry.text, step)


def _to_wandb(logger: WandbLogger, run: str, images: list[GeneratedImage]) -> None:
    """Log one panel with one step per batch."""
    requests = [image.request for image in images]
    captions = [f"{it.entry.index}/{it.image_index} {it.entry.text}" for it in requests]
    shown = [to_pillow(image.pixels) for image in images]
    logger.log_image(run, shown, caption=captions)
