"""Progress: bars in a terminal, and lines elsewhere."""

import sys
from typing import Any, cast

from jsonargparse.typing import PositiveFloat
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

from lit_dola.callbacks.progress_lines import ProgressLines
from lit_dola.callbacks.run_writer import find_writer
from lit_dola.data.base import plan_of
from lit_dola.tasks.base import JanusModule


class RunProgress(ProgressBar):
    """Shows bars of images and tokens in a terminal or a notebook, and prints lines elsewhere.

    With several devices the bars show the first one's share, the lines those of all.

    Args:
        interval: Seconds between two lines, where stderr is not a terminal; in the first five
            minutes there is one every 30 seconds.
    """

    _items: Any
    _tokens: Any

    def __init__(self, interval: PositiveFloat = 300.0) -> None:
        super().__init__()
        self.interval = interval
        self._enabled = True
        self._lines: ProgressLines | None = None

    def disable(self) -> None:
        """Turn the bars off; Lightning calls this on every rank but the first."""
        self._enabled = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bars, or begin to print lines."""
        assert isinstance(pl_module, JanusModule)
        has_bars = self._enabled and (sys.stderr.isatty() or _in_notebook())
        writer = find_writer(trainer)
        self._open_bars(trainer, pl_module, writer.title if writer else "", disable=not has_bars)
        if self._enabled and writer:
            self._lines = ProgressLines(writer.output_dir, writer.run.about, self.interval)
            if not has_bars:
                self._lines.start()

    def _open_bars(self, trainer: Trainer, module: JanusModule, title: str, disable: bool) -> None:
        to_make = len(cast(Any, trainer.predict_dataloaders).sampler)
        done = plan_of(trainer).num_done // trainer.world_size
        of = f" (rank 0 of {trainer.world_size})" if trainer.world_size > 1 else ""
        name = title or module.items.capitalize()
        self._items = tqdm(
            total=done + to_make,
            initial=done,
            desc=name + of,
            unit=module.items.removesuffix("s"),
            disable=disable,
        )
        self._tokens = tqdm(
            total=module.max_new_tokens,
            desc="Tokens of this batch",
            unit="token",
            disable=disable or not module.max_new_tokens,
            leave=False,
            position=1,
        )
        module.on_step.append(self._show_tokens)

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
        """Close the bars; from now on lines show which ranks are still running."""
        self._tokens.close()
        self._items.close()
        if self._lines and trainer.world_size > 1:
            self._lines.start()

    def on_exception(self, *_: Any) -> None:
        """Print no more lines."""
        self._stop()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Print no more lines; by now the writer has waited for all ranks."""
        self._stop()

    def _stop(self) -> None:
        if self._lines:
            self._lines.stop()
            self._lines = None


def _in_notebook() -> bool:
    """Return whether this is the kernel of a notebook, whose stderr is not a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config
