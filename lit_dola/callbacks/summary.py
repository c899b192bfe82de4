"""The first and the last line of a run."""

import math
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from lit_dola.data.plan import RunPlan
from lit_dola.errors import printable
from lit_dola.reports.status import amount, duration, rate_of
from lit_dola.tasks.base import JanusModule

_DTYPES = {"32": "float32", "64": "float64", "bf16": "bfloat16", "16": "float16"}


def first_line(
    trainer: Trainer, module: JanusModule, plan: RunPlan, results: str, folder: Path
) -> str:
    """Return what a run is about to do: model, devices, dtype, results to make, folder."""
    dtype = _DTYPES.get(str(trainer.precision).removesuffix("-true"), trainer.precision)
    quantize = f", {module.quantize}" if module.quantize else ""
    there = f", {plan.num_done:,} there already" if plan.num_done else ""
    return (
        f"{printable(module.model_path)} on {_devices(trainer)}, {dtype}{quantize}:"
        f" {amount(len(plan.requests), results)} to make{there}; writing to"
        f" {printable(str(folder))}"
    )


def last_line(
    made: int, there: int, results: str, seconds: float | None, num_failures: int, opens: Path
) -> str:
    """Return what a run has done.

    Args:
        made: Results that it has made.
        there: Results that were there before.
        results: What they are called.
        seconds: Time since the model was loaded; None if it was not.
        num_failures: Prompts and results that were skipped.
        opens: Path to look at.
    """
    skipped = f", {num_failures:,} skipped" if num_failures else ""
    if seconds is None or not made:
        done = f"nothing to do: {amount(there, results)} there already"
    else:
        rate = rate_of(made / max(seconds, 1e-3), results)
        done = f"{amount(made, results)} in {duration(math.ceil(seconds))}, {rate}"
    return f"{done}{skipped}; open {printable(str(opens))}"


def _devices(trainer: Trainer) -> str:
    """Return how many devices of which kind there are, such as ``4 x NVIDIA H100``."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
