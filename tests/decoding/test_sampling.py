"""The noise against the published algorithm, draws against their distributions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_dola.decoding.sampling import (
    EntropyTemperature,
    gumbel_noise,
    stream_keys,
    temper,
)
from lit_dola.dola import contrast_with_apc_from_logits
from tests.support import reference
from tests.support.scoring import sample
from tests.support.strategies import logits


def noise_of(images, step, vocab_size, seed=0):
    prompt_index, image_index = torch.tensor(images).unbind(1)
    return gumbel_noise(stream_keys(seed, prompt_index, image_index), step, vocab_size)


@given(
    st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 2**20), st.integers(0, 9999)
)
def test_noise_is_splitmix64_of_seed_prompt_image_and_step(seed, prompt, image, step):
    noise = noise_of([(prompt, image)], step, 5, seed)
    expected = reference.gumbel(seed, prompt, image, step, 5)
    np.testing.assert_allclose(noise[0].numpy(), expected, rtol=2e-5, atol=2e-5)


def test_splitmix64_gives_the_published_first_outputs():
    """For seed 1234567; implementations are usually checked against this list."""
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(reference.splitmix64(state))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_noise_does_not_depend_on_the_batch():
    images = [(3, 0), (0, 7), (12, 1), (3, 1)]
    together = noise_of(images, 5, 100)
    for row, image in zip(together, images, strict=True):
        assert torch.equal(row, noise_of([image], 5, 100)[0])


def test_a_step_as_a_tensor_gives_the_same_noise():
    assert torch.equal(noise_of([(1, 2)], torch.tensor(9), 64), noise_of([(1, 2)], 9, 64))


def test_streams_do_not_repeat_one_another():
    """Seed, prompt, image and step each change the whole stream; no two coincide by symmetry."""
    streams = [
        noise_of([(prompt, image)], step, 50, seed)[0]
        for seed in (0, 1, 2)
        for prompt in (0, 1, 2)
        for image in (0, 1, 2)
        for step in (0, 1, 2)
    ]
    values = torch.stack(streams)
    assert len(values.flatten().unique()) > 0.999 * values.numel()  # float32 may collide


def test_noise_is_gumbel():
    noise = noise_of([(i, j) for i in range(10) for j in range(10)], 0, 16384)
    assert noise.isfinite().all()
    assert noise.dtype == torch.float32
    # exp(-exp(-g)) of a standard Gumbel is uniform: mean 1/2, variance 1/12, no correlation.
    uniform = torch.exp(-torch.exp(-noise.double()))
    assert abs(uniform.mean() - 1 / 2) < 1e-3
    assert abs(uniform.var() - 1 / 12) < 1e-3
    histogram = torch.histc(uniform, bins=100, min=0, max=1) / uniform.numel()
    assert (histogram - 0.01).abs().max() < 3e-4
    for one, other in [(uniform[:, :-1], uniform[:, 1:]), (uniform[:-1], uniform[1:])]:
        assert abs(((one - 0.5) * (other - 0.5)).mean() * 12) < 3e-3


def unmix(output):
    """The state from which SplitMix64 makes ``output``."""

    def undo_xorshift(z, bits):
        result = z
        for _ in range(64 // bits + 1):
            result = z ^ (result >> bits)
        return result

    z = undo_xorshift(output, 31)
    z = z * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    z = undo_xorshift(z, 27)
    z = z * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return (undo_xorshift(z, 30) - 0x9E3779B97F4A7C15) % 2**64


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_noise_is_finite_at_both_ends_of_the_stream(bits):
    key = unmix(unmix(bits))
    assert reference.splitmix64(reference.splitmix64(key)) == bits
    key = key - 2**64 if key >= 2**63 else key
    assert gumbel_noise(torch.tensor([key]), 0, 1).isfinite().all()


def draws(scores, count=40_000, **settings):
    """The relative frequency of each token over many images."""
    noise = noise_of([(i // 100, i % 100) for i in range(count)], 3, len(scores))
    tokens = sample(torch.tensor(scores).expand(count, -1), noise, **settings)
    return torch.bincount(tokens, minlength=len(scores)) / count


SCORES = [2.0, 1.0, 0.0, 1.5, -3.0, float("-inf")]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4]),
        ({"temperature": 3.0}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [0, 3]),
        ({"top_k": 1}, [0]),
        ({"top_k": 100}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.5}, [0, 3]),  # 0.48 and 0.29
        ({"top_p": 0.1}, [0]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"top_k": 3, "top_p": 0.7, "temperature": 2.0}, [0, 3]),
        ({"min_p": 0.3}, [0, 1, 3]),  # the shares of the top one: 1, 0.37, 0.14, 0.61
        ({"min_p": 1.0}, [0]),
        ({"min_p": 0.3, "temperature": 3.0}, [0, 1, 2, 3]),
        ({"min_p": 0.3, "top_k": 2}, [0, 3]),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_softmax_says(settings, kept):
    scores = torch.full((len(SCORES),), float("-inf"))
    scores[kept] = torch.tensor(SCORES)[kept] / settings.get("temperature", 1.0)
    frequencies = draws(SCORES, **settings)
    assert (frequencies - scores.softmax(-1)).abs().max() < 0.01
    assert frequencies[[i for i in range(len(SCORES)) if i not in kept]].sum() == 0


@pytest.mark.parametrize("scores", [[0.0] * 8, [5.0, 0.0, 0.0, -9.0], [0.0, float("-inf"), 1.0]])
def test_the_temperature_falls_with_entropy(scores):
    """Equation of arXiv 2510.09012: T0 exp(-H / scale) + floor, times the temperature."""
    entropy = reference.entropy(np.array(scores))
    temperature = 0.7 * (2.5 * np.exp(-entropy / 3.0) + 0.6)
    expected = torch.tensor(scores).div(temperature).softmax(-1)
    made = draws(scores, temperature=0.7, entropy_temperature=EntropyTemperature(2.5, 3.0, 0.6))
    assert (made - expected).abs().max() < 0.01


@given(
    logits(count=1),
    st.sampled_from([0.0, 1e-300, 1.0, 1e300]),
    st.sampled_from([1e-300, 1.0, 1e300]),
    st.sampled_from([0.0, 1.0, 1e300]),
    st.sampled_from([1e-300, 1.0, 1e300]),
)
def test_no_entropy_temperature_draws_outside(made, span, scale, floor, temperature):
    scores = made[0].float().reshape(-1, made[0].shape[-1])
    scores[:, 1:2] = float("-inf")
    changing = EntropyTemperature(span, scale, floor)
    logits = temper(scores, temperature, changing)
    assert not logits.isnan().any()
    tokens = sample(
        scores, torch.zeros(scores.shape), temperature=temperature, entropy_temperature=changing
    )
    assert (tokens != 1).all()


@given(logits(count=1))
def test_greedy_takes_the_largest_and_of_equals_the_lowest_token(made):
    scores = made[0].reshape(-1, made[0].shape[-1])
    tokens = sample(scores, torch.zeros(scores.shape), temperature=0.0)
    for row, token in zip(scores.tolist(), tokens.tolist(), strict=True):
        assert token == row.index(max(row))


@given(
    logits(count=1),
    st.floats(1e-6, 100),
    st.none() | st.integers(1, 50),
    st.none() | st.floats(1e-6, 1),
)
def test_what_may_not_be_drawn_never_is(made, temperature, top_k, top_p):
    scores = made[0].float().reshape(-1, made[0].shape[-1])
    forbidden = torch.arange(scores.shape[-1]) % 2 == 1
    scores = scores.masked_fill(forbidden, float("-inf"))
    noise = noise_of([(0, row) for row in range(len(scores))], 0, scores.shape[-1])
    tokens = sample(scores, noise, temperature=temperature, top_k=top_k, top_p=top_p)
    assert tokens.dtype == torch.int64
    assert (tokens % 2 == 0).all()


@given(logits(count=1), st.none() | st.integers(1, 50), st.none() | st.floats(0.01, 1))
def test_a_low_temperature_leads_to_greedy(made, top_k, top_p):
    scores = made[0].float().reshape(-1, made[0].shape[-1])
    noise = noise_of([(0, row) for row in range(len(scores))], 0, scores.shape[-1])
    tokens = sample(scores, noise, temperature=1e-30, top_k=top_k, top_p=top_p)
    largest = scores.amax(dim=-1)
    assert torch.equal(scores.gather(-1, tokens[:, None])[:, 0], largest)


@pytest.mark.parametrize("tiny", [1e-38, 1e-40, 1e-46, 1e-300, 5e-324])
@pytest.mark.parametrize(
    ("setting", "limit"),
    [("top_p", "greedy"), ("temperature", "greedy"), ("min_p", "all"), ("alpha", "all")],
)
def test_numbers_below_what_float32_holds_mean_the_limit(setting, limit, tiny):
    torch.manual_seed(0)
    final, mid = torch.randn(2, 64, 50)
    noise = noise_of([(0, image) for image in range(64)], 3, 50)
    if setting == "alpha":
        scores = contrast_with_apc_from_logits(final, mid, tiny)
        assert torch.equal(scores, contrast_with_apc_from_logits(final, mid, 0.0))
        return
    found = sample(final, noise, **{setting: tiny})
    greedy = final.argmax(dim=-1)
    assert torch.equal(found, greedy if limit == "greedy" else sample(final, noise))
    assert not torch.equal(sample(final, noise), greedy)
