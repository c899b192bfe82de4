"""A trial of the compiled step: it runs here, and draws what the step as written does."""

import os
from contextlib import suppress

import torch
from torch import Tensor

from lit_dola.decoding.loop import StreamKey, TokenGenerator
from lit_dola.decoding.prefill import Branches
from lit_dola.decoding.scoring import Scoring
from lit_dola.messages import causes, first_line

TOKENS = 6
"""Tokens to draw."""
_SEQUENCES = 2
"""Sequences to compare."""
TOLERANCE = 0.25
"""Difference of two scores that rounding in low precision explains, per unit of guidance."""
_MOST_OUTSIDE = 1 / 8
"""Share of draws that may be outside the tolerance, e.g. at the threshold of the head set."""
_SWITCHES = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")
"""Variables with which torch runs what should be compiled as written, without a word."""
_KNOWN = {
    "find a working triton": "Triton is not installed",
    "no module named 'triton'": "Triton is not installed",
    "no working c++ compiler": "no C++ compiler",
    "failed to find c compiler": "no C compiler",
}
"""Reasons in the words of users, by a part of the message."""


class Enough(Exception):
    """Ends a token loop early."""


def find_fault(generate: TokenGenerator, prompt: Branches, count: int, exact: bool) -> str | None:
    """Return the reason why a compiled step cannot be used; None if it can.

    In float32 both steps must draw the same tokens. In low precision, where rounding differs, the
    tokens that the compiled one draws must be those with the largest score as written, within
    :data:`TOLERANCE` times the sum of the weights of both branches.

    Args:
        generate: A token loop with the compiled step.
        prompt: The branches of a prompt.
        count: Sequences of a batch, for which the step is compiled.
        exact: Whether the model is in float32 or float64.

    Raises:
        StepError: If the compiled step fails.
        RuntimeError: If something else does, e.g. for lack of memory.
    """
    for switch in _SWITCHES:
        if os.environ.get(switch) == "1":
            return f"{switch} is set"
    keys = [(0, sequence) for sequence in range(count)]
    tokens = first_tokens(generate, [prompt] * count, keys)[:_SEQUENCES]
    other, prompts, keys = generate.as_written(TOKENS), [prompt] * len(tokens), keys[: len(tokens)]
    return find_disagreement(other, prompts, keys, tokens, exact)


def find_disagreement(
    other: TokenGenerator,
    prompts: list[Branches],
    keys: list[StreamKey],
    tokens: Tensor,
    exact: bool,
) -> str | None:
    """Return how tokens that were drawn differ from those of another loop; None if they do not.

    Args:
        other: A token loop with the step as written.
        prompts: The branches of each sequence's prompt.
        keys: The random stream of each sequence.
        tokens: The tokens, int64 ``(sequences, count)``.
        exact: As :func:`find_fault`, which says what is expected.
    """
    if exact:
        same = bool((tokens == first_tokens(other, prompts, keys, tokens.shape[1])).all())
        return None if same else "it draws other tokens than the step as written"
    outside = _outside(other, prompts, keys, tokens)
    if outside <= _MOST_OUTSIDE:
        return None
    return f"{outside:.0%} of its tokens are not those with the largest score"


def first_tokens(
    generate: TokenGenerator,
    prompts: list[Branches],
    keys: list[StreamKey],
    count: int = TOKENS,
) -> Tensor:
    """Draw the first tokens of each sequence, and end.

    Args:
        generate: The token loop.
        prompts: The branches of each sequence's prompt.
        keys: The random stream of each sequence.
        count: Tokens to draw.

    Returns:
        Int64 ``(sequences, count)``, or as many as the loop draws.
    """
    found: list[Tensor] = []
    count = min(count, generate.max_new_tokens)

    def look(step: int, tokens: Tensor) -> None:
        if step >= count and (tokens[:, :count] >= 0).all():
            found.append(tokens[:, :count].clone())
            raise Enough

    with suppress(Enough):
        found.append(generate(prompts, keys, look)[:, :count])
    return found[0]


def _outside(
    generate: TokenGenerator, prompts: list[Branches], keys: list[StreamKey], tokens: Tensor
) -> float:
    """Return the share of tokens whose score is below the largest by more than the tolerance."""
    scoring = generate.decoder.scoring
    values = generate.race(prompts, keys, tokens)
    behind = values.amax(dim=-1) - values.gather(-1, tokens[..., None])[..., 0]
    allowed = explained(scoring, TOLERANCE) / (scoring.temperature or 1.0)
    counts = torch.ones_like(tokens, dtype=torch.bool)
    if generate.stop_ids:  # a sequence that has stopped repeats its last token
        stopped = torch.isin(tokens, tokens.new_tensor(generate.stop_ids)).cumsum(dim=1)
        counts = stopped <= stopped.new_tensor(1)
    return float((~(behind <= allowed) & counts).sum() / counts.sum())


def explained(scoring: Scoring, unit: float) -> float:
    """Return the difference of two scores that rounding explains.

    Args:
        scoring: The settings.
        unit: The same of two log-probabilities, per unit of guidance.
    """
    weight = scoring.cfg_weight
    return unit * (abs(weight) + abs(weight - 1))


def reason_of(error: Exception) -> str:
    """Return the reason of a compiler's error, in one line."""
    *_, first = causes(error)
    said = " ".join(map(str, causes(error))).lower()
    known = (reason for part, reason in _KNOWN.items() if part in said)
    inner = getattr(first, "inner_exception", first)  # of torch's BackendCompilerFailed
    return next(known, f"{type(inner).__name__}: {first_line(inner)}")
