"""Calls that run in turns, and the ratios of their times."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from lit_dola.verification.measure import timed
from lit_dola.verification.speed import spread


def in_turns(
    calls: Mapping[str, Callable[[int], Any]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of each call in each turn; a turn before the first one warms up.

    Args:
        calls: Each takes the number of the turn, from 0.
        repeats: Turns that count.
        device: The device whose work is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in tqdm(range(repeats + 1), desc="turns", disable=None, leave=False):
        for name, call in calls.items():
            took = timed(partial(call, turn), device)
            if turn:
                seconds[name].append(took)
    return seconds


def ratio(over: list[float], under: list[float]) -> str:
    """Return the ratio of two calls' times within a turn: median, lowest and highest."""
    return spread([one / other for one, other in zip(over, under, strict=True)])
