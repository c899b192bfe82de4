"""Muon for the matrices inside layers, AdamW for all else, both with warmup and a cosine."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup


def muon_and_adamw(
    module: LightningModule,
    layers: Iterable[Tensor],
    *,
    muon_learning_rate: float,
    learning_rate: float,
    weight_decay: float,
    warmup_steps: int,
) -> Any:
    """Return what ``configure_optimizers`` of a module does.

    Args:
        module: The module; those of its weights that need gradients are trained.
        layers: Weights of layers, of which Muon updates the matrices.
        muon_learning_rate: Largest learning rate of Muon, its updates scaled as AdamW's are.
        learning_rate: Largest learning rate of AdamW.
        weight_decay: Weight decay of matrices; vectors have none.
        warmup_steps: Steps until the largest learning rates; a cosine then ends at 0.

    Source: Jordan et al., "Muon" (2024); the scaling is that of Liu et al., "Muon is Scalable for
    LLM Training" (2025).
    """
    hidden = [weight for weight in layers if weight.dim() == 2]
    others = {weight for weight in module.parameters() if weight.requires_grad} - {*hidden}
    ordered = [weight for weight in module.parameters() if weight in others]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in ordered if weight.dim() > 1]},
        {"params": [weight for weight in ordered if weight.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers: list[Any] = [
        torch.optim.Muon(
            hidden,
            muon_learning_rate,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay),
    ]
    steps = int(module.trainer.estimated_stepping_batches)
    return optimizers, [
        get_cosine_schedule_with_warmup(optimizer, warmup_steps, steps) for optimizer in optimizers
    ]


def take_step(module: LightningModule, loss: Tensor, gradient_clip: float) -> None:
    """Take a step with every optimizer of a module whose optimization is manual.

    Args:
        module: The module.
        loss: The loss.
        gradient_clip: Largest norm of all gradients.
    """
    module.manual_backward(loss)
    nn.utils.clip_grad_norm_(module.parameters(), gradient_clip)
    optimizers: Any = module.optimizers()
    schedulers: Any = module.lr_schedulers()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    for scheduler in schedulers:
        scheduler.step()
