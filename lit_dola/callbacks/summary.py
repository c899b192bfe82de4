"""The first and the last line of a run, and the one about what is missing."""

import math
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from lit_dola.data.plan import RunPlan
from lit_dola.messages import amount, printable, rate_of
from lit_dola.registry import record_types
from lit_dola.reports.status import duration
from lit_dola.runs.finish import Outcome
from lit_dola.runs.run_file import RunFile
from lit_dola.tasks.base import JanusModule

_DTYPES = {"32": "float32", "64": "float64", "bf16": "bfloat16", "16": "float16"}


def first_line(
    trainer: Trainer, module: JanusModule, plan: RunPlan, results: str, folder: Path
) -> str:
    """Return the first line of a run: model, devices, dtype, results to generate, folder."""
    dtype = _DTYPES.get(str(trainer.precision).removesuffix("-true"), trainer.precision)
    quantize = f", {module.quantize}" if module.quantize else ""
    done = f", {plan.num_done:,} already exist" if plan.num_done else ""
    return (
        f"{printable(module.model_path)} on {_devices(trainer)}, {dtype}{quantize}:"
        f" {amount(len(plan.requests), results)} to generate{done}; writing to"
        f" {printable(str(folder))}"
    )


def last_line(run: RunFile, outcome: Outcome, opens: Path) -> str:
    """Return the last line of a run."""
    results = record_types()[run.log].results
    skipped = f", {outcome.num_failures:,} skipped" if outcome.num_failures else ""
    made = outcome.num_there - run.done_before
    if made > 0:
        done = f"{amount(made, results)} generated"
        if run.began and run.ended:  # not if other ranks have generated all of them
            seconds = max(run.ended - run.began, 1e-3)
            rate = rate_of(made / seconds, results)
            done = f"{amount(made, results)} in {duration(math.ceil(seconds))}, {rate}"
    else:
        done = f"nothing to do: all {amount(outcome.num_there, results)} already exist"
    return f"{done}{skipped}; open {printable(str(opens))}"


def missing_line(run: RunFile, outcome: Outcome) -> str:
    """Return the message for an incomplete run."""
    return (
        f"{outcome.num_missing} of {run.asked_for} {record_types()[run.log].results} are missing;"
        " expected all of them, but the trainer ended the run early (limit_predict_batches,"
        " fast_dev_run, max_time) or something deleted them; the same command without such a"
        " setting generates them"
    )


def _devices(trainer: Trainer) -> str:
    """Return how many devices of which kind there are, such as ``4 x NVIDIA H100``."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
