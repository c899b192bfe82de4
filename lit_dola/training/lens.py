"""``python main.py lens``: trains readouts of middle layers."""

import math
from logging import getLogger
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.memory import is_oom_error

from lit_dola.errors import RankError, UserError, writing_to
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.lens import lens_content
from lit_dola.messages import printable
from lit_dola.runs.files import write_atomically
from lit_dola.settings.checks import given_path
from lit_dola.training.readouts import DTYPES, READOUTS, LitLens
from lit_dola.training.sequences import LensDataModule

_log = getLogger(__name__)
_LINE_EVERY = 50
"""Steps between two lines of progress."""


class _Progress(Callback):
    """Lines of progress: the loss now and then, and what each validation has found."""

    _last = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss."""
        step = trainer.global_step
        if trainer.is_global_zero and step % _LINE_EVERY == 0 and step != self._last:
            self._last = step
            loss = float(outputs["loss"])
            _log.info("step %d of %d: %s nats, all layers", step, trainer.max_steps, f"{loss:.3f}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the divergences of the held-out sequences."""
        assert isinstance(pl_module, LitLens)
        if trainer.is_global_zero and not trainer.sanity_checking:
            found = _figures(trainer, pl_module)
            by_layer = (f"layer {layer} {it['lens']:.3f}" for layer, it in found.items())
            _log.info("step %d, held out: %s nats", trainer.global_step, ", ".join(by_layer))


def lens(
    trainer: Trainer,
    model: LitLens,
    datamodule: LensDataModule,
    output: str = "lens.safetensors",
    patience: PositiveInt = 5,
) -> None:
    """Train readouts of middle layers, on images or answers of the model, or captioned pictures.

    Args:
        trainer: The trainer: devices, precision, steps.
        model: The lenses.
        datamodule: The sequences.
        output: File of the lenses.
        patience: Validations without progress after which training ends early; by default there is
            one every 50 steps.

    Raises:
        UserError: If a setting is wrong, or the sequences do not fit the checkpoint.
    """
    path = given_path("output", output)
    with writing_to(path, "output"):
        path.parent.mkdir(parents=True, exist_ok=True)
    if trainer.precision not in DTYPES:
        raise UserError(
            str(trainer.precision),
            f"{' or '.join(DTYPES)}: lenses are trained in float32",
            setting="trainer.precision",
        )
    checkpoint = Checkpoint.open(model.model_path)
    encoder = datamodule.prepare(checkpoint, model.head, model.roles)
    encodes = datamodule.picture_json is not None
    model.prepare(checkpoint, encoder.pad_token_id, encodes)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks += [EarlyStopping("kl", patience=patience, check_finite=True), _Progress()]
    try:
        trainer.fit(model, datamodule=datamodule)
    except RuntimeError as error:
        if not is_oom_error(error):
            raise
        raise RankError(
            f"out of memory with {datamodule.batch_size} sequence(s) of {checkpoint.name} in"
            f" {trainer.precision}",
            "a device with more free memory, fewer --data.batch_size with more"
            " --trainer.accumulate_grad_batches, --trainer.precision bf16-mixed, or fewer"
            " --model.layers",
            mentions=("data.batch_size", "model.layers"),
        ) from error
    if not trainer.is_global_zero:
        return
    found = _figures(trainer, model)
    training = {
        "steps": trainer.global_step,
        "sequences": len(datamodule.train),
        "held_out": len(datamodule.validation),
        "batch_size": datamodule.batch_size * trainer.world_size,
        "learning_rate": model.learning_rate,
        "unconditional": model.unconditional,
        "seed": model.seed,
        "precision": str(trainer.precision),
        "kl": {str(layer): figures for layer, figures in found.items()},
    }
    readouts: Any = {layer: model.readouts[str(layer)] for layer in model.layers}
    with writing_to(path, "output"):
        write_atomically(path, [lens_content(readouts, checkpoint, model.head, training)])
    print(_table(found))
    print(printable(str(path)))


def _figures(trainer: Trainer, model: LitLens) -> dict[int, dict[str, float]]:
    """Return the held-out divergences in nats, by layer and way of reading it."""
    metrics = trainer.callback_metrics
    return {
        layer: {name: float(metrics.get(f"{name}/{layer}", math.nan)) for name in READOUTS}
        for layer in model.layers
    }


def _table(found: dict[int, dict[str, float]]) -> str:
    """Return the divergences as aligned text."""
    head = f"{'layer':<7}" + "".join(f"{name:>8}" for name in READOUTS) + "   nats, held out"
    rows = [
        f"{layer:<7}" + "".join(f"{value:>8.3f}" for value in figures.values())
        for layer, figures in found.items()
    ]
    return "\n".join([head, *rows])
