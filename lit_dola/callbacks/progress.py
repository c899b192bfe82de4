"""Progress bars, and Lightning without the messages that mean nothing here."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lit_dola.data.base import plan_of
from lit_dola.tasks.base import JanusModule

_HARMLESS = (
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*Total length of .* across ranks is zero.*",  # everything is done, or fewer images than ranks
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's device summary and its harmless warnings."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for harmless in _HARMLESS:
                warnings.filterwarnings("ignore", harmless)
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


class GenerationProgressBar(ProgressBar):
    """Two bars, each with a rate and the time left; silent if stderr is not a terminal.

    With several devices they show the first one's share.
    """

    _items: "tqdm[Any]"
    _tokens: "tqdm[Any]"

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    def disable(self) -> None:
        """Turn the bars off; Lightning calls this on every rank but the first."""
        self._enabled = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bars."""
        assert isinstance(pl_module, JanusModule)
        to_make = len(cast(Any, trainer.predict_dataloaders).sampler)
        done = plan_of(trainer).num_done // trainer.world_size
        # disable=None means: unless stderr is a terminal
        disable = None if self._enabled else True
        of = f" (rank 0 of {trainer.world_size})" if trainer.world_size > 1 else ""
        items = pl_module.items
        self._items = tqdm(
            total=done + to_make,
            initial=done,
            desc=f"{items.capitalize()}{of}",
            unit=items.removesuffix("s"),
            disable=disable,
        )
        self._tokens = tqdm(
            total=pl_module.max_new_tokens,
            desc="Tokens of this batch",
            unit="token",
            disable=disable if pl_module.max_new_tokens else True,
            leave=False,
            position=1,
        )
        pl_module.on_step.append(self._show_tokens)

    def _show_tokens(self, tokens: int) -> None:
        self._tokens.update(tokens - self._tokens.n)

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Reset the bar of tokens."""
        self._tokens.reset()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Add the batch's items."""
        self._items.update(len(batch))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bars."""
        self._tokens.close()
        self._items.close()
