"""The choice between a compiled step, with CUDA graphs or without, and the step as written."""

import time
from logging import getLogger
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.memory import is_oom_error

from lit_dola.data.plan import RunPlan
from lit_dola.decoding.loop import StepError, TokenGenerator
from lit_dola.decoding.prefill import Branches
from lit_dola.decoding.trial import find_fault, reason_of
from lit_dola.errors import RankError
from lit_dola.janus.model import Backbone
from lit_dola.messages import causes

_log = getLogger(__name__)
_NAMES = {True: "compiled step with CUDA graphs", False: "compiled step"}
_ATTENTION = ("scaled_dot_product", "flash", "no available kernel", "attention")
"""Parts of the messages of a fused attention kernel."""
_found: WeakKeyDictionary[Backbone, dict[torch.device, tuple[bool, str | None]]]
_found = WeakKeyDictionary()
"""Verdicts of trials, by model and device: use of CUDA graphs, and the reason if the step is not
compiled at all. A program calls a model often."""


class Compilable(Protocol):
    """A module of a task whose decoding step can be compiled."""

    janus: Backbone
    trainer: Trainer
    generator: TokenGenerator
    graphs: bool
    fault: str | None
    at_once: int | None
    compile_step: bool | Literal["auto"]

    @property
    def device(self) -> torch.device:
        """Device of the model."""

    @property
    def plan(self) -> RunPlan:
        """The plan of the run."""

    @property
    def is_exact(self) -> bool:
        """Return whether the model is in float32 or float64."""

    def inference_mode(self) -> torch.inference_mode:
        """Return the context of a token loop."""

    def trial_prompt(self) -> Branches:
        """Return a prompt on which a compiled step is tried."""

    def renew_generator(self) -> None:
        """Make the token loop again."""

    def warn_of_halving(self) -> None:
        """Warn that batches are smaller than they should be."""


def choose_step(module: Compilable) -> None:
    """Make the token loop with a compiled step that works, or with the step as written.

    If the compiled step fails, it is tried without CUDA graphs, then given up. All ranks decide
    alike. The trial has one prompt and as many rows as the batches to come, so that nothing is
    compiled for it alone.

    Raises:
        RankError: If it fails, and ``model.compile`` is true.
    """
    if known := _found.get(module.janus, {}).get(module.device):
        module.graphs, module.fault = known
        if module.fault is not None:
            _refuse_if_required(module, module.fault)
        module.renew_generator()
        return
    began = time.monotonic()
    module.renew_generator()
    while fault := _on_any_rank(module, _fault(module)):
        if not module.graphs:
            give_up(module, fault)
            return
        _log.warning("%s: %s; trying one without", _NAMES[True], fault)
        module.graphs = False
        module.renew_generator()
    _remember(module)
    if module.trainer.is_global_zero:
        name, took = _NAMES[module.graphs], time.monotonic() - began
        _log.info("%s: tried in %d s, it draws what the step as written does", name, took)


def give_up(module: Compilable, fault: str) -> None:
    """Continue with the step as written.

    Raises:
        RankError: If ``model.compile`` is true.
    """
    _refuse_if_required(module, fault)
    _log.warning("compiled step: %s; continuing with the step as written, which is slower", fault)
    module.fault = fault
    _remember(module)
    module.renew_generator()


def _refuse_if_required(module: Compilable, fault: str) -> None:
    if module.compile_step is True:
        raise RankError(f"true: {fault}", "auto or false", setting="model.compile")


def use_plain_attention(error: Exception) -> bool:
    """Turn torch's fused attention kernels off if one has failed; return whether that is new."""
    said = " ".join(map(str, causes(error))).lower()
    fused = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
    if not fused or is_out_of_memory(error) or not any(name in said for name in _ATTENTION):
        return False
    _log.warning("attention: %s; continuing without fused kernels", reason_of(error))
    for enable in (
        torch.backends.cuda.enable_flash_sdp,
        torch.backends.cuda.enable_mem_efficient_sdp,
        torch.backends.cuda.enable_cudnn_sdp,
    ):
        enable(False)
    return True


def fault_of(error: Exception) -> str | None:
    """Return the reason of an error of the compiled step; None if it is another one."""
    if not isinstance(error, StepError) or is_out_of_memory(error):
        return None
    return reason_of(error)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error is, or was caused by, a lack of memory."""
    return any(is_oom_error(cause) for cause in causes(error))


def _fault(module: Compilable) -> str | None:
    """Return what is wrong with the compiled step; batches that do not fit are halved first."""
    prompt = module.trial_prompt()
    while True:
        count = module.at_once or module.plan.batch_size or 1
        try:
            with module.inference_mode():
                return find_fault(module.generator, prompt, count, module.is_exact)
        except RuntimeError as error:
            if use_plain_attention(error):
                continue
            if is_out_of_memory(error):
                if count == 1:
                    return "out of memory"
            elif fault := fault_of(error):
                return fault
            else:
                raise
        # After the handler, because the error keeps the tensors of its frames alive.
        module.at_once = count // 2
        module.renew_generator()
        module.warn_of_halving()


def _remember(module: Compilable) -> None:
    """Keep the choice for later calls, on all ranks or on none."""
    if _all_ranks_are_here(module):
        _found.setdefault(module.janus, {})[module.device] = module.graphs, module.fault


def _all_ranks_are_here(module: Compilable) -> bool:
    """Return whether no rank is without requests: Lightning starts no prediction there."""
    return len(module.plan.requests) >= module.trainer.world_size


def _on_any_rank(module: Compilable, fault: str | None) -> str | None:
    """Return this rank's fault, or that another rank has one."""
    if not _all_ranks_are_here(module):
        return fault
    flag = torch.tensor(float(fault is not None), device=module.device)
    anywhere = bool(module.trainer.strategy.reduce(flag, reduce_op="max"))
    return fault or ("it cannot be used on another rank" if anywhere else None)
