"""CFG and the head-set policies, and the trap that they avoid."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_dola.decoding.guidance import (
    classifier_free_guidance,
    dola_from_features,
    guided_dola,
    guided_dola_from_features,
)
from lit_dola.decoding.scoring import score_features, score_logits
from lit_dola.dola import MASK_VALUE, apc_mask, contrast_with_apc_from_logits, log_contrast
from tests.support import reference
from tests.support.scoring import make_scoring
from tests.support.strategies import alphas, logits, strengths

POLICIES = ("cond", "intersection", "union", "per_branch")
policies = st.sampled_from(POLICIES)
weights = st.sampled_from([0.0, 0.3, 1.0, 2.5, 5.0, 20.0])


def drawable(scores):
    """Tokens whose probability is not 0 in float32."""
    return scores.softmax(dim=-1) > 0


@given(logits(count=4), alphas, strengths, weights, policies)
def test_no_nan_no_inf_and_something_to_draw(four, alpha, strength, cfg_weight, apc):
    scores = guided_dola(*four, alpha=alpha, cfg_weight=cfg_weight, apc=apc, strength=strength)
    assert scores.dtype == torch.float32
    assert scores.shape == four[0].shape
    assert not scores.isnan().any()
    assert not scores.isposinf().any()
    assert scores.isfinite().any(dim=-1).all()


@given(logits(count=4, dtype=torch.float32, largest=30.0), alphas, weights)
def test_who_may_be_drawn(four, alpha, cfg_weight):
    """The table of policies, by set operations on the two head sets."""
    cond_final, uncond_final, cond_mid, uncond_mid = four
    in_cond = apc_mask(log_contrast(cond_final, cond_mid)[1], alpha)
    in_uncond = apc_mask(log_contrast(uncond_final, uncond_mid)[1], alpha)
    both = in_cond & in_uncond
    empty = ~both.any(dim=-1, keepdim=True)
    table = {
        "cond": in_cond,
        "union": in_cond | in_uncond,
        "intersection": torch.where(empty, in_cond, both),
    }
    plain = classifier_free_guidance(
        log_contrast(cond_final, cond_mid)[0],
        log_contrast(uncond_final, uncond_mid)[0],
        cfg_weight,
    )
    for apc, allowed in table.items():
        scores = guided_dola(*four, alpha=alpha, cfg_weight=cfg_weight, apc=apc)
        assert torch.equal(scores.isfinite(), allowed)
        assert torch.equal(scores[allowed], plain[allowed])
        if apc != "union":
            argmax = cond_final.argmax(dim=-1, keepdim=True)
            assert scores.gather(-1, argmax).isfinite().all() or apc == "intersection"


@pytest.mark.parametrize("apc", POLICIES)
@pytest.mark.parametrize("cfg_weight", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("alpha", [0.05, 0.0])
@pytest.mark.parametrize("strength", [1.0, 0.3, 0.0])
def test_equals_the_reference_in_float64(apc, cfg_weight, alpha, strength):
    generator = torch.Generator().manual_seed(3)
    four = torch.randn(4, 6, 300, generator=generator) * 2
    settings = {"alpha": alpha, "cfg_weight": cfg_weight, "apc": apc, "strength": strength}
    scores = guided_dola(*four, **settings)
    for row in range(6):
        expected = reference.fuse([x[row].double().numpy() for x in four], **settings)
        tolerance = 300 if apc == "per_branch" else 1e-4  # -1e9 in float32 is exact to 64
        np.testing.assert_allclose(scores[row].double().numpy(), expected, atol=tolerance)


@given(logits(count=4, dtype=torch.float32, largest=30.0), alphas)
def test_cond_at_one_is_the_conditional_branch(four, alpha):
    cond_final, _, cond_mid, _ = four
    scores = guided_dola(*four, alpha=alpha, cfg_weight=1.0, apc="cond")
    contrast, log_probs = log_contrast(cond_final, cond_mid)
    inside = apc_mask(log_probs, alpha)
    torch.testing.assert_close(scores[inside], contrast[inside], atol=1e-4, rtol=1e-5)
    assert scores[~inside].isneginf().all()


@given(logits(count=4, dtype=torch.float32, largest=30.0), alphas)
def test_cond_at_zero_is_the_unconditional_contrast_on_the_conditional_head(four, alpha):
    cond_final, uncond_final, cond_mid, uncond_mid = four
    scores = guided_dola(*four, alpha=alpha, cfg_weight=0.0, apc="cond")
    inside = apc_mask(log_contrast(cond_final, cond_mid)[1], alpha)
    assert torch.equal(scores[inside], log_contrast(uncond_final, uncond_mid)[0][inside])
    assert scores[~inside].isneginf().all()


@given(
    logits(count=4, dtype=torch.float32, largest=30.0),
    st.lists(st.floats(-50, 50), min_size=4, max_size=4),
    st.sampled_from(POLICIES[:3]),
)
def test_a_shift_of_any_logits_changes_nothing(four, shifts, apc):
    scores = guided_dola(*four, alpha=0.1, cfg_weight=3.0, apc=apc)
    shifted = guided_dola(
        *(x + shift for x, shift in zip(four, shifts, strict=True)),
        alpha=0.1,
        cfg_weight=3.0,
        apc=apc,
    )
    both = scores.isfinite() & shifted.isfinite()  # the threshold itself may round either way
    torch.testing.assert_close(shifted[both], scores[both], atol=1e-3, rtol=0)
    assert both.any(dim=-1).all()


@pytest.mark.parametrize("bias", [True, False])
@given(st.integers(0, 2**31), alphas, strengths, weights, policies)
def test_features_fused_before_the_head_give_the_same_scores(
    bias, seed, alpha, strength, cfg_weight, apc
):
    """The same as from four rows of logits, up to a constant per row; exact for ``per_branch``."""
    generator = torch.Generator().manual_seed(seed)
    final, mid = torch.randn(2, 2, 3, 16, generator=generator)
    linear = nn.Linear(16, 40, bias=bias).requires_grad_(False)
    settings = {"alpha": alpha, "cfg_weight": cfg_weight, "apc": apc, "strength": strength}
    fused, own = guided_dola_from_features(final, mid, linear, **settings)
    torch.testing.assert_close(own, linear(final)[0])
    scores = guided_dola(*linear(final), *linear(mid), **settings)
    assert fused.dtype == torch.float32
    drawn = scores > MASK_VALUE / 2
    assert torch.equal(fused > MASK_VALUE / 2, drawn)
    shift = (fused - scores).masked_fill(~drawn, 0).sum(-1, keepdim=True) / drawn.sum(-1, True)
    torch.testing.assert_close(fused[drawn], (scores + shift)[drawn], atol=2e-3, rtol=0)
    if apc == "per_branch":
        assert torch.equal(fused, scores)


@pytest.mark.parametrize("bias", [True, False])
@given(st.integers(0, 2**31), alphas, strengths)
def test_one_branch_from_features_is_the_plain_contrast(bias, seed, alpha, strength):
    """Up to a constant per row; a share of the head's bias cancels."""
    generator = torch.Generator().manual_seed(seed)
    final, mid = torch.randn(2, 3, 16, generator=generator)
    linear = nn.Linear(16, 40, bias=bias).requires_grad_(False)
    fused, own = dola_from_features(final, mid, linear, alpha=alpha, strength=strength)
    torch.testing.assert_close(own, linear(final))
    expected = contrast_with_apc_from_logits(linear(final), linear(mid), alpha, strength)
    inside = expected != MASK_VALUE
    assert torch.equal(fused.isfinite(), inside)
    shift = (fused - expected).masked_fill(~inside, 0).sum(-1, keepdim=True) / inside.sum(-1, True)
    torch.testing.assert_close(fused[inside], (expected + shift)[inside], atol=1e-3, rtol=0)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("alpha", [0.2, 0.0])
@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("apc", POLICIES)
def test_both_forms_score_as_the_formula_says(apc, strength, alpha, guided):
    """From features, as decoding does, and from logits, as inspection does."""
    features = torch.randn(2, 1 + guided, 3, 16, generator=torch.Generator().manual_seed(1))
    linear = nn.Linear(16, 40).requires_grad_(False)
    scoring = make_scoring(alpha=alpha, strength=strength, cfg_weight=0.7, apc=apc)
    needed = features if strength else features[:1]
    scores, own = score_features(needed, linear, scoring)
    logits = linear(features)
    torch.testing.assert_close(own, logits[0, 0])
    if not guided:
        expected = contrast_with_apc_from_logits(*logits[:, 0], alpha, strength)
    else:
        settings = {"alpha": alpha, "strength": strength, "cfg_weight": 0.7, "apc": apc}
        expected = guided_dola(*logits[0], *logits[1], **settings)
        from_logits = score_logits(logits, scoring).softmax(-1)
        torch.testing.assert_close(from_logits, expected.softmax(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.softmax(-1), expected.softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guided", [True, False])
def test_strength_one_scores_as_before_it_existed_bit_for_bit(guided, dtype):
    features = torch.randn(2, 1 + guided, 3, 16, dtype=dtype)
    linear = nn.Linear(16, 40, dtype=dtype).requires_grad_(False)
    contrast = features[0].float() - features[1].float()
    fused = contrast[1] + 5.0 * (contrast[0] - contrast[1]) if guided else contrast[0]
    rows = linear(torch.stack([features[0, 0], fused.to(dtype)]))
    threshold = rows[0].float().amax(-1, keepdim=True) + np.log(0.1)
    before = (rows[1].float() - linear.bias.float()).masked_fill(rows[0] < threshold, -np.inf)
    assert torch.equal(score_features(features, linear, make_scoring())[0], before)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("apc", POLICIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_and_alpha_zero_are_the_baseline_bit_for_bit(dtype, apc, guided):
    features = torch.randn(1, 1 + guided, 3, 16, dtype=dtype)
    linear = nn.Linear(16, 40, dtype=dtype).requires_grad_(False)
    logits = linear(features[0])
    own = classifier_free_guidance(*logits, 5.0) if guided else logits[0]
    scoring = make_scoring(alpha=0.0, strength=0.0, apc=apc)
    assert torch.equal(score_features(features, linear, scoring)[0], own)
    assert scoring.baseline == scoring


def test_features_fused_before_the_head_round_about_as_much_in_bfloat16():
    generator = torch.Generator().manual_seed(0)
    final, mid = torch.randn(2, 2, 8, 512, generator=generator).bfloat16()
    linear = nn.Linear(512, 1000).requires_grad_(False).bfloat16()
    nn.init.normal_(linear.weight, std=0.2, generator=generator)
    settings = {"alpha": 1e-9, "cfg_weight": 5.0}  # every token is in the head sets
    exact_head = copy.deepcopy(linear).double()
    exact = guided_dola(*exact_head(final.double()), *exact_head(mid.double()), **settings)

    def error(scores):
        kept = exact.isfinite() & scores.isfinite()
        off = [(row - true)[keep] for row, true, keep in zip(scores, exact, kept, strict=True)]
        return torch.cat([row - row.mean() for row in off]).square().mean().sqrt()

    fused = error(guided_dola_from_features(final, mid, linear, **settings)[0])
    separate = error(guided_dola(*linear(final), *linear(mid), **settings))
    assert 0 < fused < 2 * separate


def test_heads_that_do_not_meet_fall_back_to_the_conditional_one():
    cond, uncond = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 9.0]])
    mid = torch.zeros(1, 3)
    scores = guided_dola(cond, uncond, mid, mid, alpha=0.5, cfg_weight=5.0, apc="intersection")
    assert drawable(scores).tolist() == [[True, False, False]]


def the_trap():
    """Token 0 is by far the best in both branches; 1 to 3 are only in the conditional head set."""
    cond = torch.log(torch.tensor([0.70, 0.14, 0.10, 0.06]))
    uncond = torch.log(torch.tensor([0.97, 0.01, 0.01, 0.01]))
    mid = torch.zeros(4)
    return {"cond_final": cond, "uncond_final": uncond, "cond_mid": mid, "uncond_mid": mid}


def test_the_trap_masking_each_branch_before_fusing_draws_at_random():
    """For w > 1, tokens in only one head set beat those in both, and are equally likely."""
    probs = guided_dola(**the_trap(), alpha=0.05, cfg_weight=5.0, apc="per_branch").softmax(-1)
    assert probs[0] == 0  # the best token in both branches cannot be drawn
    torch.testing.assert_close(probs[1:], torch.full((3,), 1 / 3))  # differences are lost


def test_the_other_policies_stay_clear_of_the_trap():
    contrast, _ = log_contrast(the_trap()["cond_final"], the_trap()["cond_mid"])
    other, _ = log_contrast(the_trap()["uncond_final"], the_trap()["uncond_mid"])
    expected = other + 5.0 * (contrast - other)
    for apc, allowed in {
        "cond": [True] * 4,
        "union": [True] * 4,
        "intersection": [True, False, False, False],
    }.items():
        scores = guided_dola(**the_trap(), alpha=0.05, cfg_weight=5.0, apc=apc)
        assert scores.isfinite().tolist() == allowed
        torch.testing.assert_close(scores[allowed], expected[allowed])
        assert len(scores[allowed].unique()) == sum(allowed)  # still told apart


def test_unknown_policy_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="cond, intersection, union, per_branch"):
        guided_dola(*torch.zeros(4, 3), alpha=0.1, cfg_weight=1.0, apc="both")


@given(logits(count=2, dtype=torch.float32), weights)
def test_guidance_scale(pair, cfg_weight):
    cond, uncond = pair
    scores = classifier_free_guidance(cond, uncond, cfg_weight)
    expected = uncond.double() + cfg_weight * (cond.double() - uncond.double())
    torch.testing.assert_close(scores.double(), expected, atol=0.1, rtol=1e-5)
    assert torch.equal(classifier_free_guidance(cond, uncond, 0.0), uncond)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(4), ids=["cond", "uncond", "cond mid", "uncond mid"])
@pytest.mark.parametrize("apc", POLICIES)
def test_no_mask_hides_logits_that_are_not_finite(apc, place, value):
    """Whatever is wrong, and for however unlikely a token, it is in the row's largest score."""
    four = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(1))
    four[place, 1, 7] = value
    scores = guided_dola(*four, alpha=0.5, cfg_weight=2.0, apc=apc)
    assert scores.amax(dim=-1).isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("layer", [0, 1], ids=["final", "mid"])
@pytest.mark.parametrize("branch", [0, 1], ids=["cond", "uncond"])
@pytest.mark.parametrize("apc", POLICIES)
def test_no_mask_hides_features_that_are_not_finite(apc, branch, layer):
    features = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(1))
    features[layer, branch, 1, 7] = float("inf")
    scores, _ = guided_dola_from_features(
        *features, nn.Linear(8, 50), alpha=0.5, cfg_weight=2.0, apc=apc
    )
    assert scores.amax(dim=-1).isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("apc", POLICIES)
def test_logits_that_overflow_where_their_contrast_does_not(apc):
    """As in float16: the logits are infinite, and the difference of the features is small."""
    features = torch.full((2, 2, 3, 8), 1e19)
    features[:, :, [0, 2]] = 1.0
    features[0] += torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    linear = nn.Linear(8, 50)
    nn.init.constant_(linear.weight, 1e19)
    scores, _ = guided_dola_from_features(*features, linear, alpha=0.5, cfg_weight=2.0, apc=apc)
    assert not scores[1].amax().isfinite()
