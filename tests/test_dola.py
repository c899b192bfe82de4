"""The three public functions: values against float64, properties for any logits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_dola.dola import (
    MASK_VALUE,
    apc_mask,
    contrast_with_apc_from_logits,
    dola_static_from_hidden,
    log_contrast,
    pick_static_layer_index,
)
from tests.support import reference
from tests.support.strategies import alphas, log, logits, strengths


@given(logits(largest=50.0), alphas, strengths)
def test_equals_the_formula_in_float64(pair, alpha, strength):
    final, mid = pair
    ours = contrast_with_apc_from_logits(final, mid, alpha, strength).reshape(-1, final.shape[-1])
    rows = zip(final.reshape_as(ours), mid.reshape_as(ours), ours, strict=True)
    for final_row, mid_row, row in rows:
        both = final_row.double().numpy(), mid_row.double().numpy()
        contrast = reference.contrast(*both, strength)
        inside = row != MASK_VALUE
        torch.testing.assert_close(
            row[inside].double(), torch.from_numpy(contrast)[inside], atol=2e-5, rtol=1e-5
        )
        # Inside or outside may differ only at the very threshold.
        q = torch.from_numpy(reference.log_softmax(final_row.double().numpy()))
        margin = q - q.max() - log(alpha)
        assert torch.equal(inside[margin.abs() > 1e-4], (margin > 0)[margin.abs() > 1e-4])


@given(logits(), alphas, strengths)
def test_head_is_never_empty_and_nothing_is_nan_or_inf(pair, alpha, strength):
    final, mid = pair
    scores = contrast_with_apc_from_logits(final, mid, alpha, strength)
    assert scores.dtype == torch.float32
    assert scores.shape == final.shape
    assert torch.isfinite(scores).all()
    head = scores != MASK_VALUE
    assert head.any(dim=-1).all()
    most_probable = final.float() == final.float().amax(dim=-1, keepdim=True)
    assert head[most_probable].all()


@given(
    logits(dtype=torch.float32, largest=30.0), alphas, st.floats(-100, 100), st.floats(-100, 100)
)
def test_a_shift_of_either_logits_changes_nothing(pair, alpha, shift_final, shift_mid):
    final, mid = pair
    contrast, log_probs = log_contrast(final, mid)
    shifted, shifted_log_probs = log_contrast(final + shift_final, mid + shift_mid)
    torch.testing.assert_close(shifted, contrast, atol=1e-3, rtol=0)
    margin = log_probs - log_probs.amax(dim=-1, keepdim=True) - log(alpha)
    clear = margin.abs() > 1e-3
    assert torch.equal(apc_mask(shifted_log_probs, alpha)[clear], apc_mask(log_probs, alpha)[clear])


@given(logits(count=1), alphas, alphas)
def test_a_larger_alpha_never_lets_more_in(made, one, other):
    log_probs = made[0].float().log_softmax(dim=-1)
    small, large = sorted((one, other))
    assert (apc_mask(log_probs, large) <= apc_mask(log_probs, small)).all()


def test_alpha_one_leaves_the_most_probable_tokens_alone():
    final = torch.tensor([0.0, 3.0, 3.0, 2.9])
    scores = contrast_with_apc_from_logits(final, torch.zeros(4), alpha=1.0)
    assert (scores != MASK_VALUE).tolist() == [False, True, True, False]


@pytest.mark.parametrize("name", ["alpha", "strength"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_what_is_outside_its_range_is_an_error(name, value):
    settings = {"alpha": 0.1, name: value}
    with pytest.raises(ValueError, match=f"expected 0 <= {name} <= 1"):
        contrast_with_apc_from_logits(torch.zeros(3), torch.zeros(3), **settings)


@given(logits())
def test_alpha_zero_leaves_nothing_out(pair):
    final, mid = pair
    assert apc_mask(final.float().log_softmax(-1), 0.0).all()
    contrast, _ = log_contrast(final, mid)
    assert torch.equal(contrast_with_apc_from_logits(final, mid, 0.0), contrast)


@given(logits(), alphas)
def test_strength_one_is_the_plain_contrast_bit_for_bit(pair, alpha):
    final, mid = pair
    plain = final.float().log_softmax(-1) - mid.float().log_softmax(-1)
    scores = contrast_with_apc_from_logits(final, mid, alpha, strength=1.0)
    inside = scores != MASK_VALUE
    assert torch.equal(scores[inside], plain[inside])
    assert torch.equal(scores, contrast_with_apc_from_logits(final, mid, alpha))


@given(logits(count=1), alphas)
def test_strength_zero_needs_no_middle_layer(made, alpha):
    (final,) = made
    scores = contrast_with_apc_from_logits(final, torch.full_like(final, math.nan), alpha, 0.0)
    inside = scores != MASK_VALUE
    assert torch.equal(scores[inside], final.float().log_softmax(-1)[inside])


@given(logits(largest=30.0, dtype=torch.float32))
def test_approaches_the_baseline_as_strength_vanishes(pair):
    """With alpha 0: the continuous road from DoLa to the baseline."""
    final, mid = pair
    distances = [
        (contrast_with_apc_from_logits(final, mid, 0.0, s).softmax(-1) - final.softmax(-1))
        .abs()
        .max()
        .item()
        for s in (0.0, 1e-6, 1e-4, 1e-2)
    ]
    spread = mid.log_softmax(-1).abs().max().item()
    for strength, distance in zip((0.0, 1e-6, 1e-4, 1e-2), distances, strict=True):
        assert distance <= 2 * strength * spread + 1e-6


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 4.0])
def test_contrastive_decoding_is_a_strength_and_a_temperature(beta):
    """O'Brien and Lewis: (1 + beta) log q - beta log q_mid, on the same head set."""
    final, mid = torch.randn(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    q, q_mid = final.log_softmax(-1), mid.log_softmax(-1)
    inside = q >= q.max() + math.log(0.05)
    theirs = ((1 + beta) * q - beta * q_mid).masked_fill(~inside, -math.inf).softmax(-1)
    ours = contrast_with_apc_from_logits(final, mid, 0.05, beta / (1 + beta)).double()
    torch.testing.assert_close((ours * (1 + beta)).softmax(-1), theirs, atol=1e-5, rtol=0)


def total_variation(scores, other):
    return (scores.softmax(-1) - other.softmax(-1)).abs().sum().item() / 2


def test_approaches_the_baseline_as_alpha_and_the_middle_layers_say_vanish():
    """DoLa vanishes as the head set grows to all tokens and the middle layer becomes flat."""
    generator = torch.Generator().manual_seed(0)
    final, mid = torch.randn(2, 1000, generator=generator) * 3
    distances = [
        total_variation(contrast_with_apc_from_logits(final, mid * fade, alpha=fade**4), final)
        for fade in (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.5
    assert distances[-1] < 2e-3


def test_approaches_a_flat_head_as_the_middle_layer_approaches_the_final_one():
    """Two equal layers have nothing to contrast: all tokens in the head set are equally likely.

    So a layer near the last alone does not lead back to the baseline; at ``alpha = 1`` it leads
    to greedy decoding of it.
    """
    generator = torch.Generator().manual_seed(0)
    final, other = torch.randn(2, 1000, generator=generator) * 3
    for alpha in (0.1, 1e-3):
        flat = torch.zeros(1000).masked_fill(~apc_mask(final.log_softmax(-1), alpha), float("-inf"))
        distances = [
            total_variation(
                contrast_with_apc_from_logits(final, final.lerp(other, far), alpha), flat
            )
            for far in (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
        ]
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 1e-2
    greedy = contrast_with_apc_from_logits(final, final, alpha=1.0)
    assert greedy.softmax(-1).argmax() == final.argmax()
    assert greedy.softmax(-1).max() == 1


def test_dola_static_takes_the_last_position_of_two_layers():
    torch.manual_seed(0)
    hidden_states = torch.randn(6, 2, 7, 16).unbind()
    head = nn.Linear(16, 50)
    scores = dola_static_from_hidden(hidden_states, head, 3, 0.1)
    expected = contrast_with_apc_from_logits(
        head(hidden_states[-1][:, -1, :]), head(hidden_states[3][:, -1, :]), 0.1
    )
    assert torch.equal(scores, expected)
    assert scores.shape == (2, 50)


@pytest.mark.parametrize(
    ("num_hidden_states", "has_embedding", "ratio", "index"),
    [
        (31, True, 0.8, 24),  # Janus-Pro-7B
        (25, True, 0.8, 19),  # Janus-1.3B, Janus-Pro-1B: 19.2
        (31, True, 0.0, 1),  # never the embedding
        (31, False, 0.0, 0),
        (31, True, 1.0, 29),  # never the final layer
        (31, False, 1.0, 29),
        (6, True, 0.5, 3),  # 2.5: halves up
        (4, True, 0.5, 2),  # 1.5
        (3, True, 0.8, 1),
        (2, False, 0.8, 0),
    ],
)
def test_pick_static_layer_index(num_hidden_states, has_embedding, ratio, index):
    assert pick_static_layer_index(num_hidden_states, has_embedding, ratio) == index


def test_the_ratio_is_0_8_by_default():
    assert pick_static_layer_index(31, True) == 24


@given(st.integers(3, 200), st.booleans(), st.floats(0, 1))
def test_layer_is_a_middle_one_and_the_nearest(num_hidden_states, has_embedding, ratio):
    index = pick_static_layer_index(num_hidden_states, has_embedding, ratio)
    allowed = range(1 if has_embedding else 0, num_hidden_states - 1)
    assert index in allowed
    depth = ratio * (num_hidden_states - 1)
    assert abs(index - depth) <= min(abs(other - depth) for other in allowed) + 1e-9


@pytest.mark.parametrize("ratio", [-0.01, 1.01, math.nan, math.inf])
def test_ratio_outside_its_range_is_an_error(ratio):
    with pytest.raises(ValueError, match="between 0 and 1"):
        pick_static_layer_index(31, True, ratio)


@pytest.mark.parametrize(("num_hidden_states", "has_embedding"), [(1, False), (2, True)])
def test_a_model_without_a_middle_layer_is_an_error(num_hidden_states, has_embedding):
    with pytest.raises(ValueError, match="no layer before the final one"):
        pick_static_layer_index(num_hidden_states, has_embedding)
