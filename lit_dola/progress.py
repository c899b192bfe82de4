"""Progress: images done of all, and tokens of the running batch."""

from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lit_dola.module import LitDoLa


class GenerationProgressBar(ProgressBar):
    """Two bars, each with a rate and the time left; silent when stderr is not a terminal.

    Of many devices the first one's share is shown.
    """

    _images: tqdm
    _tokens: tqdm

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on every rank but the first."""
        self._enabled = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bars."""
        assert isinstance(pl_module, LitDoLa)
        to_make = len(cast(Any, trainer.predict_dataloaders).sampler)
        done = cast(Any, trainer).datamodule.num_done // trainer.world_size
        # disable=None is tqdm's way to ask for a terminal
        disable = None if self._enabled else True
        of = f" (rank 0 of {trainer.world_size})" if trainer.world_size > 1 else ""
        self._images = tqdm(
            total=done + to_make, initial=done, desc=f"Images{of}", unit="image", disable=disable
        )
        self._tokens = tqdm(
            total=pl_module.janus.num_image_tokens,
            desc="Tokens of this batch",
            unit="token",
            disable=disable,
            leave=False,
            position=1,
        )
        pl_module.on_step.append(lambda tokens: self._tokens.update(tokens - self._tokens.n))

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Start the tokens of a batch anew."""
        self._tokens.reset()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Count the batch's images."""
        self._images.update(len(batch))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bars."""
        self._tokens.close()
        self._images.close()
