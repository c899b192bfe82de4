"""What the command line says on stderr."""

import os
import re
import sys
from collections.abc import Callable, Iterable

import torch


def is_first_local_rank() -> bool:
    """Return whether this process is the first one of its machine."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def on_first_rank(log: Callable[[str], None], notes: Iterable[str]) -> None:
    """Log notes on the first rank of each machine."""
    if is_first_local_rank():
        for note in notes:
            log(note)


def trainer_message(error: Exception) -> str:
    """Return the message for an error of Lightning about the trainer's settings."""
    wants_gpu = re.search("gpu|cuda|accelerator", str(error), re.IGNORECASE)
    if not wants_gpu or torch.cuda.is_available():
        return f"trainer: {error}"
    if "accelerator='cpu'" in str(error):
        return f"trainer: {error}; strategies that run without a GPU are auto, ddp and fsdp2"
    return f"trainer: {error}; on a machine without a GPU add --trainer.accelerator cpu"


def fail(message: str, code: int) -> int:
    """Print an error in one line, and return the exit code."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
