"""The token loop against the plain reference, and against transformers' own generate."""

from typing import get_args

import pytest
import torch
from transformers import JanusForConditionalGeneration, TopKLogitsWarper

from lit_dola.data.requests import RequestKey
from lit_dola.decoding.guidance import ApcPolicy
from lit_dola.decoding.loop import NotFiniteError, cfg_pair
from lit_dola.decoding.pool import token_generator
from tests.support import reference
from tests.support.images import BATCH, PROMPTS, ImageGenerator, expected, slow
from tests.support.scoring import make_scoring


@pytest.mark.parametrize("count", [1, 5, *slow([2, 4])])
def test_a_small_batch_is_filled_up_with_copies(count, load, encoder):
    """Every step runs on the same number of rows, and only what was asked for is returned."""
    janus = load(torch.float32)
    rows = set()

    def note(_layer, args):
        if args[0].shape[1] == 1:  # not a prefill
            rows.add(len(args[0]))

    hook = janus.language_model.layers[0].register_forward_pre_hook(note)
    filled = run(janus, encoder, {"layer": 6, "fill_to": 4}, BATCH[:count])
    hook.remove()
    assert rows == {2 * max(count, 4)}
    assert filled == run(janus, encoder, {"layer": 6}, BATCH[:count])


@pytest.fixture(scope="module")
def janus64(load):
    return load(torch.float64)


def run(janus, encoder, settings, batch=BATCH):
    return ImageGenerator(janus, **settings)(
        [encoder.encode(PROMPTS[prompt]) for prompt, _ in batch],
        [RequestKey(prompt, image) for prompt, image in batch],
    ).tolist()


SETTINGS = [
    {"layer": None},
    {"layer": None, "top_k": 50, "top_p": 0.9, "temperature": 3.0},
    {"layer": 6},
    {"layer": 6, "mid_norm": True, "seed": 2**62 + 5},
    {"layer": 6, "apc": "intersection"},
    {"layer": 6, "strength": 0.3, "alpha": 0.02, "mid_norm": True},
    {"layer": 6, "strength": 0.0, "min_p": 0.05, "entropy_temperature": (2.5, 3.0, 0.6)},
    # w < 1 and wide head sets; otherwise float32 cannot tell the scores of this policy apart.
    {"layer": 6, "apc": "per_branch", "cfg_weight": 0.5, "alpha": 1e-4},
]
MORE_SETTINGS = [
    {"layer": 7, "alpha": 0.5, "temperature": 0.7},
    {"layer": 6, "temperature": 0.0},
    {"layer": None, "temperature": 0.0},
    {"layer": None, "cfg_weight": 1.0, "seed": 7},
    {"layer": 6, "seed": 1},
    {"layer": 6, "seed": 2**62 + 5},
    {"layer": 6, "cfg_weight": 1.0, "seed": 2},
    {"layer": 6, "mid_norm": True},
    {"layer": 1, "alpha": 0.02},
    {"layer": 3, "alpha": 1.0},
    {"layer": 6, "apc": "union"},
    {"layer": 6, "apc": "union", "mid_norm": True, "cfg_weight": 0.0},
    {"layer": 6, "apc": "intersection", "cfg_weight": 1.0},
    {"layer": 5, "cfg_weight": 2.5, "top_k": 5},
    {"layer": 5, "top_p": 0.8, "temperature": 1.5},
    {"layer": 6, "strength": 0.6, "alpha": 0.0},
    {"layer": 6, "strength": 0.2, "apc": "union", "cfg_weight": 1.0},
    {"layer": 6, "strength": 0.2, "apc": "intersection", "min_p": 0.1, "temperature": 2.0},
    {"layer": 6, "strength": 0.0, "apc": "intersection"},
    {"layer": 6, "strength": 0.0, "apc": "per_branch", "cfg_weight": 0.5, "alpha": 1e-4},
    {"layer": 6, "strength": 0.4, "apc": "per_branch", "cfg_weight": 0.5, "alpha": 1e-4},
]


@pytest.mark.parametrize(
    "settings", [*SETTINGS[::3], *slow([*SETTINGS[1::3], *SETTINGS[2::3], *MORE_SETTINGS])], ids=str
)
def test_same_tokens_as_the_plain_reference(settings, janus64, reference_model, encoder):
    found = run(janus64, encoder, settings)
    assert found == expected(reference_model, encoder, guesses=found, **settings)


@pytest.mark.parametrize("wrong_from", [0, 1, 7, 15])
def test_a_wrong_guess_does_not_change_the_plain_reference(
    wrong_from, janus64, reference_model, encoder
):
    (found,) = run(janus64, encoder, {"layer": 6}, [(0, 3)])
    guess = found[:wrong_from] + [token ^ 1 for token in found[wrong_from:]]
    for guesses in [], [guess]:
        assert expected(reference_model, encoder, [(0, 3)], guesses, layer=6) == [found]


NEGATIVE = "blurry, in the style of a child, and with far too many words for anybody to read"


@pytest.mark.parametrize("negative", [NEGATIVE, *slow(["no"])])
@pytest.mark.parametrize("window", [None, *slow([4])])
@pytest.mark.parametrize(
    "settings", [*slow([{"layer": None}]), {"layer": 6, "apc": "union"}], ids=str
)
def test_a_negative_prompt_is_the_unconditional_branch(
    settings, window, negative, janus64, reference_model, encoder
):
    """Shorter or longer than the prompt, next to images without one."""
    ids, negative_ids = encoder.encode(PROMPTS[0]), encoder.encode(negative)
    pad = encoder.pad_token_id
    branches = [cfg_pair(ids, pad, negative_ids), cfg_pair(ids, pad), cfg_pair(ids, pad, ids)]
    generate = token_generator(
        janus64,
        janus64.image_head,
        make_scoring(**{name: settings[name] for name in settings if name != "layer"}),
        window=window,
        layer=settings["layer"],
        max_new_tokens=16,
    )
    keys = [RequestKey(0, 0), RequestKey(0, 0), RequestKey(0, 1)]
    found = generate(branches, keys).tolist()
    for tokens, key, other in zip(found, keys, [negative_ids, None, ids]):
        assert tokens == reference.generate(
            reference_model,
            ids,
            pad,
            image_index=key.sample_index,
            negative_ids=other,
            guess=tokens,
            **settings,
        )
    assert found[0] != found[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *slow(range(1, 6))])
@pytest.mark.parametrize("layer", [None, 6])
def test_same_tokens_in_float32(seed, layer, load, reference_model, encoder):
    batch = [(1, 0), (0, 1)]
    settings = {"layer": layer, "seed": seed, "cfg_weight": 1.0 + seed}
    found = run(load(torch.float32), encoder, settings, batch)
    assert found == expected(reference_model, encoder, batch, found, **settings)


@pytest.mark.parametrize("seed", [0, *slow([1, 2**40])])
@pytest.mark.parametrize("cfg_weight", [5.0, *slow([0.0, 1.0])])
def test_strength_zero_and_alpha_zero_draw_the_baseline_s_tokens(cfg_weight, seed, load, encoder):
    janus = load(torch.float32)
    batch = [(prompt, image) for prompt in range(len(PROMPTS)) for image in range(8)]
    shared = {"cfg_weight": cfg_weight, "seed": seed}
    without = run(janus, encoder, {"layer": None, **shared}, batch)
    for apc in get_args(ApcPolicy):
        dola = {"layer": 6, "strength": 0.0, "alpha": 0.0, "apc": apc}
        assert run(janus, encoder, {**dola, **shared}, batch) == without


def test_last_hidden_state_is_normed_and_the_middle_ones_are_not(reference_model, encoder):
    """The meaning of ``hidden_states``, on which both the reference and the loop rely."""
    language_model = reference_model.language_model
    raw = {}
    for index, layer in enumerate(language_model.layers):
        layer.register_forward_hook(lambda _m, _a, out, index=index: raw.__setitem__(index, out))
    output = language_model(
        input_ids=torch.tensor([encoder.encode("a cat")]), output_hidden_states=True
    )
    for layer in language_model.layers:
        layer._forward_hooks.clear()
    assert len(output.hidden_states) == len(raw) + 1
    assert torch.equal(output.hidden_states[-1], language_model.norm(raw[len(raw) - 1]))
    for index in range(1, len(raw)):
        assert torch.equal(output.hidden_states[index], raw[index - 1])


def test_the_middle_layer_is_the_one_asked_for(janus64, encoder):
    one, other = (run(janus64, encoder, {"layer": layer}) for layer in (6, 7))
    assert one != other


def test_an_image_does_not_depend_on_its_batch(load, encoder):
    janus, config = load(torch.float32), {"layer": 6, "seed": 3}
    batch = [(1, 0), (0, 0), (2, 0), (1, 1), (2, 5), (0, 1), (1, 9)]
    together = run(janus, encoder, config, batch)
    alone = [run(janus, encoder, config, [key])[0] for key in batch]
    backwards = run(janus, encoder, config, batch[::-1])[::-1]
    assert together == alone == backwards


def test_images_and_seeds_differ(janus64, encoder):
    config = {"layer": 6, "cfg_weight": 1.0}
    images = run(janus64, encoder, config, [(0, i) for i in range(4)])
    images += run(janus64, encoder, {**config, "seed": 1}, [(0, 0)])
    assert len(set(map(tuple, images))) == 5


def test_greedy_baseline_equals_transformers_generate(tiny_checkpoint, load, encoder):
    """Tokens and pixels, one prompt at a time, because ``generate`` pads its unconditional rows."""
    model = JanusForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    janus = load(torch.float32)
    for prompt in PROMPTS:
        input_ids = torch.tensor([encoder.encode(prompt)])
        theirs = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_mode="image",
            do_sample=False,
            guidance_scale=5.0,
        )
        config = {"layer": None, "cfg_weight": 5.0, "temperature": 0.0}
        ours = ImageGenerator(janus, **config)(input_ids.tolist(), [RequestKey(0, 0)])
        assert torch.equal(ours, theirs)
        with torch.no_grad():
            pixels = model.decode_image_tokens(theirs).permute(0, 3, 1, 2)
            assert torch.equal(janus.decode_image_tokens(ours), pixels)


def test_transformers_samples_from_50_tokens_by_default(tiny_checkpoint, encoder, monkeypatch):
    """What docs/explanation.md warns of."""
    kept = []
    call = TopKLogitsWarper.__call__

    def counted(self, input_ids, scores):
        filtered = call(self, input_ids, scores)
        kept.append(int(filtered.isfinite().sum(dim=-1).max()))
        return filtered

    monkeypatch.setattr(TopKLogitsWarper, "__call__", counted)
    model = JanusForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    ids = torch.tensor([encoder.encode("a cat")])
    settings = {"generation_mode": "image", "do_sample": True, "guidance_scale": 5.0}
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    assert len(kept) == 16
    assert all(50 <= tokens < 60 for tokens in kept)  # of 1024; equal scores are kept together
    kept.clear()
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings, top_k=0)
    assert kept == []


def test_on_step_counts_the_tokens(janus64, encoder):
    seen = []
    generate = ImageGenerator(janus64, layer=None, fill_to=3)
    made = generate(
        [encoder.encode("a")],
        [RequestKey(0, 0)],
        lambda *step: seen.append((*step[:1], step[1].clone())),
    )
    assert [count for count, _ in seen] == list(range(1, 17))
    for count, tokens in seen:
        assert torch.equal(tokens[:, :count], made[:, :count])
        assert (tokens[:, count:] == -1).all()


def test_seeds_of_their_own(janus64, encoder):
    """A sequence draws what a whole run with its seed would draw."""
    prompts = [encoder.encode("a"), encoder.encode("two birds"), encoder.encode("a")]
    keys = [RequestKey(0, 0), RequestKey(1, 0), RequestKey(0, 1)]
    together = ImageGenerator(janus64, layer=6)(prompts, keys, seeds=[7, 0, 2**32 - 1])
    for place, seed in enumerate([7, 0, 2**32 - 1]):
        alone = ImageGenerator(janus64, layer=6, seed=seed)(prompts, keys)
        assert torch.equal(together[place], alone[place])
    assert not torch.equal(together[0], together[2])


def test_half_precision_keeps_positions_exact(load):
    """Casting the whole module rounds the rotary frequencies; they are restored."""
    janus, exact = load(torch.float32), load(torch.float32).language_model.rotary_emb.inv_freq
    janus.to(torch.bfloat16)
    assert not torch.equal(janus.language_model.rotary_emb.inv_freq.float(), exact)
    janus.restore_float32()
    assert janus.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(janus.language_model.rotary_emb.inv_freq, exact)


@pytest.mark.parametrize("value", ["nan", *slow(["inf"])])
@pytest.mark.parametrize("temperature", [1.0, *slow([0.0])])
@pytest.mark.parametrize("branch", ["cond", *slow(["uncond"])])
@pytest.mark.parametrize("layer", [None, 6])
def test_logits_that_are_not_finite_are_named(layer, branch, temperature, value, load, encoder):
    """The error names image and step; the tokens of the other images are kept."""
    janus = load(torch.float32)
    config = {"layer": layer, "temperature": temperature}
    sound = run(janus, encoder, config)
    steps = []

    def poison(_module, _args, hidden_states):
        if hidden_states.shape[1] == 1:  # not a prefill
            steps.append(len(hidden_states))
        if len(steps) == 4:
            hidden_states[2 * 3 + ("cond", "uncond").index(branch)] = float(value)
        return hidden_states

    janus.language_model.layers[-1].register_forward_hook(poison)
    with pytest.raises(NotFiniteError) as caught:
        run(janus, encoder, config)
    assert caught.value.steps == {3: 4}
    tokens = caught.value.tokens.tolist()
    assert tokens[:3] + tokens[4:] == sound[:3] + sound[4:]
    assert tokens[3][:4] == sound[3][:4]


@pytest.mark.slow
def test_prompts_whose_first_logits_are_not_finite(load, encoder):
    janus = load(torch.float32)
    janus.image_head.linear.weight.data[77, 5] = float(
        "nan"
    )  # one weight of one token of the vocabulary
    for config in ({"layer": None}, {"layer": 6}):
        with pytest.raises(NotFiniteError) as caught:
            run(janus, encoder, config)
        assert caught.value.steps == dict.fromkeys(range(len(BATCH)), 0)


@pytest.mark.parametrize("window", [None, *slow([4])])
@pytest.mark.parametrize(
    "settings",
    [
        {"layer": 6},
        *slow(
            [
                {"layer": None},
                {"layer": 6, "alpha": 0.0, "apc": "union", "strength": 0.5},
                {"layer": 6, "strength": 0.3, "alpha": 0.02, "mid_norm": True, "top_p": 0.9},
                {"layer": 6, "strength": 0.0, "entropy_temperature": (2.5, 3.0, 0.6)},
                {"layer": 6, "temperature": 0.0},
            ]
        ),
    ],
    ids=str,
)
def test_without_guidance_one_row_draws_the_tokens_of_two(
    settings, window, load, encoder, reference_model
):
    both = ImageGenerator(load(torch.float32), **settings, cfg_weight=1.0)
    decoder = both.decoder
    assert not decoder.scoring.uses_guidance
    one = token_generator(
        both._janus, decoder.head, decoder.scoring, layer=settings["layer"], max_new_tokens=16,
        window=window,
    )  # fmt: skip
    ids = [encoder.encode(PROMPTS[prompt]) for prompt, _ in BATCH]
    tokens = one([(prompt,) for prompt in ids], BATCH).tolist()
    assert one._cache.rows == len(BATCH)
    assert tokens == both(ids, BATCH).tolist()
    assert tokens == expected(
        reference_model, encoder, guesses=tokens, **{**settings, "cfg_weight": 1.0}
    )


@pytest.mark.parametrize(
    ("settings", "uses_guidance"),
    [
        ({"cfg_weight": 1.0}, False),
        ({"cfg_weight": 1.0, "apc": "union"}, True),  # its head set counts, too
        ({"cfg_weight": 1.0, "apc": "intersection"}, True),
        ({"cfg_weight": 1.0, "apc": "per_branch"}, True),
        ({"cfg_weight": 1.0, "apc": "union", "alpha": 0.0}, False),
        ({"cfg_weight": 0.0}, True),
        ({"cfg_weight": 1.5}, True),
    ],
)
def test_scores_that_depend_on_the_unconditional_branch(settings, uses_guidance):
    assert make_scoring(**settings).uses_guidance is uses_guidance
