"""Images in the trainer's loggers; the settings go there by Lightning itself."""

from typing import Any

from jsonargparse.typing import NonNegativeInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from lit_dola.data import ImageRequest
from lit_dola.module import GeneratedImages, to_pillow
from lit_dola.writer import find_writer


class ImageLogger(Callback):
    """Sends images to TensorBoard or Weights & Biases, where ``trainer.logger`` has one of them.

    Under the name of the run's folder; of many devices the first one's images.

    Args:
        max_images: At most so many images of a run.
    """

    def __init__(self, max_images: NonNegativeInt = 64) -> None:
        self.max_images = max_images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to count."""
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
    """A tag a prompt; its images are the steps."""
    for request, image in zip(requests, pixels):
        tag = f"{run}/{request.prompt.prompt_index:05}"
        logger.experiment.add_image(tag, image, request.image_index)
        logger.experiment.add_text(tag, request.prompt.text, request.image_index)


def _to_wandb(logger: WandbLogger, run: str, requests: list[ImageRequest], pixels: Tensor) -> None:
    """A panel with a step a batch."""
    shown = [to_pillow(image) for image in pixels[: len(requests)]]
    captions = [
        f"{request.prompt.prompt_index}/{request.image_index} {request.prompt.text}"
        for request in requests
    ]
    logger.log_image(run, shown, caption=captions)
