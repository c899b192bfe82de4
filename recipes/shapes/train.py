"""``python -m recipes.shapes.train fit --config recipes/shapes/vq.yaml``."""

import logging

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LightningCLI

from recipes.shapes.data import ShapesDataModule


def main(args: list[str] | None = None) -> None:
    """Train one stage according to its configuration.

    Args:
        args: Arguments; those of the process if None.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_float32_matmul_precision("high")
    LightningCLI(
        LightningModule,
        ShapesDataModule,
        subclass_mode_model=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        args=args,
    )


if __name__ == "__main__":
    main()
