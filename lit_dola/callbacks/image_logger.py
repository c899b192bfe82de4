"""Sending images to the trainer's loggers; Lightning itself sends the settings."""

from typing import Any

from jsonargparse.typing import NonNegativeInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from lit_dola.callbacks.run_writer import find_writer
from lit_dola.data.requests import ImageRequest
from lit_dola.janus.vq import to_pillow
from lit_dola.tasks.generate import GeneratedImages


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
        requests = outputs.requests[: self._left]
        self._left -= len(requests)
        writer = find_writer(trainer)
        run = writer.output_dir.name if writer else "images"
        for logger in trainer.loggers if requests else ():
            if isinstance(logger, TensorBoardLogger):
                _to_tensorboard(logger, run, requests, outputs.pixels)
            elif isinstance(logger, WandbLogger):
                _to_wandb(logger, run, requests, outputs.pixels)


def _to_tensorboard(
    logger: TensorBoardLogger, run: str, requests: list[ImageRequest], pixels: Tensor
) -> None:
    """Log one tag per prompt; its images are the tag's steps."""
    for request, image in zip(requests, pixels):
        tag = f"{run}/{request.prompt.prompt_index:05}"
        logger.experiment.add_image(tag, image, request.image_index)
        logger.experiment.add_text(tag, request.prompt.text, request.image_index)


def _to_wandb(logger: WandbLogger, run: str, requests: list[ImageRequest], pixels: Tensor) -> None:
    """Log one panel with one step per batch."""
    shown = [to_pillow(image) for image in pixels[: len(requests)]]
    captions = [
        f"{request.prompt.prompt_index}/{request.image_index} {request.prompt.text}"
        for request in requests
    ]
    logger.log_image(run, shown, caption=captions)
