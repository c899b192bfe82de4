"""Sequences that advance at their own pace draw the very tokens of those that go in step."""

import json
from itertools import product

import pytest
import torch

from lit_dola.data.requests import RequestKey
from lit_dola.decoding.loop import NotFiniteError, TokenGenerator, cfg_pair
from lit_dola.decoding.pool import PooledGenerator
from lit_dola.decoding.sampling import EntropyTemperature
from lit_dola.janus.tokenizer import PromptEncoder
from tests.support.commands import CPU, ROOT, records
from tests.support.images import BATCH, PROMPTS, load_folder, slow
from tests.support.scoring import make_scoring
from tests.test_same_image import images_of

SETTINGS = [
    {"layer": None},
    {"layer": 6},
    {"layer": 6, "strength": 0.2, "alpha": 0.02, "mid_norm": True, "cfg_weight": 2.0},
]
MORE = [
    {"layer": None, "temperature": 0.0},
    {"layer": None, "cfg_weight": 1.0, "seed": 3},
    {"layer": None, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    {"layer": None, "entropy_temperature": EntropyTemperature(2.5, 3.0, 0.6)},
    {"layer": 6, "temperature": 0.0, "cfg_weight": 2.0},
    {"layer": 6, "apc": "union"},
    {"layer": 6, "apc": "intersection"},
    {"layer": 6, "apc": "per_branch", "cfg_weight": 0.5, "alpha": 1e-4},
    {"layer": 6, "strength": 0.0, "alpha": 0.0},
]


def make(kind, janus, *, layer, compile=False, window=None, pool=None, tokens=None, **scoring):
    more = {**({"window": window} if window else {}), **(pool or {})}
    return kind(
        janus, janus.image_head, make_scoring(**scoring), layer=layer,
        max_new_tokens=tokens or janus.num_image_tokens, compile=compile, **more,
    )  # fmt: skip


def run(generate, janus, encoder, batch=BATCH, prompts=PROMPTS):
    branches = [
        cfg_pair(encoder.encode(prompts[prompt]), janus.pad_token_id) for prompt, _ in batch
    ]
    return generate(branches, [RequestKey(*key) for key in batch])


@pytest.mark.parametrize("window", [5, *slow([2, 40])])
@pytest.mark.parametrize("settings", [*SETTINGS[1:2], *slow([*SETTINGS[::2], *MORE])], ids=str)
def test_same_tokens_as_one_at_a_time(settings, window, load, encoder):
    """Five images of three prompts, each at its own pace; a window longer than an image, too."""
    janus = load(torch.float32)
    expected = run(make(TokenGenerator, janus, **settings), janus, encoder)
    generate = make(PooledGenerator, janus, window=window, **settings)
    for _ in range(2):  # what an earlier batch left in the cache does not matter
        assert torch.equal(run(generate, janus, encoder), expected)
        assert generate.forwards.shape == (5,)
        assert (generate.forwards >= 1).all()
        assert (generate.forwards <= janus.num_image_tokens - 1).all()


@pytest.fixture(scope="module")
def shapes():
    folder = ROOT / "checkpoints/shapes-janus"
    encoder = PromptEncoder(folder)
    janus = load_folder(folder, pad_token_id=encoder.pad_token_id, dtype=torch.float32)
    lines = (ROOT / "recipes/shapes/prompts.jsonl").read_text().splitlines()
    return janus, encoder, [json.loads(line)["prompt"] for line in lines[3::28]]


PASSES = [
    ({"layer": None, "cfg_weight": 2.0}, 40),
    ({"layer": None, "cfg_weight": 5.0}, 48),
    ({"layer": 8}, 22),
]


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "most"), PASSES, ids=str)
def test_far_fewer_passes_where_tokens_can_be_guessed(settings, most, shapes):
    janus, encoder, prompts = shapes
    batch = [(prompt, 0) for prompt in range(len(prompts))]
    expected = run(make(TokenGenerator, janus, **settings), janus, encoder, batch, prompts)
    generate = make(PooledGenerator, janus, window=16, pool={"adapts": False}, **settings)
    assert torch.equal(run(generate, janus, encoder, batch, prompts), expected)
    assert generate.forwards.float().mean() <= most  # of 144


def test_logits_that_are_not_finite_are_named_as_one_at_a_time(load, encoder):
    """A token whose embedding is NaN: all logits after it are."""
    janus = load(torch.float32)
    sound = run(make(TokenGenerator, janus, layer=None), janus, encoder)
    bad = int(sound[3, 7])
    embed = janus.image_head.embed

    def spoilt(tokens):
        return embed(tokens).masked_fill((tokens == bad)[..., None], float("nan"))

    object.__setattr__(janus.image_head, "embed", spoilt)
    errors = []
    for kind, window in ((TokenGenerator, None), (PooledGenerator, 4)):
        with pytest.raises(NotFiniteError) as caught:
            run(make(kind, janus, layer=None, window=window), janus, encoder)
        errors.append(caught.value)
    assert errors[0].steps == errors[1].steps
    assert 3 in errors[0].steps
    whole = [image for image in range(5) if image not in errors[0].steps]
    assert torch.equal(errors[0].tokens[whole], errors[1].tokens[whole])


@pytest.mark.slow
def test_finished_images_leave_the_batch(shapes):
    """The others then go on in fewer rows, whichever of them are left."""
    janus, encoder, prompts = shapes
    batch = [(prompt, image) for prompt in range(5) for image in range(2)]
    settings = {"layer": None, "cfg_weight": 2.0}
    rows = []

    def note(_layer, args):
        if args[0].shape[1] <= 10:  # not a prefill
            rows.append(len(args[0]))

    expected = run(make(TokenGenerator, janus, **settings), janus, encoder, batch, prompts)
    generate = make(PooledGenerator, janus, window=10, **settings)
    hook = janus.language_model.layers[0].register_forward_pre_hook(note)
    assert torch.equal(run(generate, janus, encoder, batch, prompts), expected)
    hook.remove()
    assert rows == sorted(rows, reverse=True)
    assert sum(rows) == 2 * int(generate.forwards.sum())  # nobody waits for the slowest
    assert len(set(rows)) > 3


def test_progress_counts_known_tokens(load, encoder):
    janus = load(torch.float32)
    seen, counted = [], []

    def on_step(count, tokens):
        seen.append(count)
        counted.append((tokens >= 0).sum().item() // len(tokens))
        drawn.append(tokens)

    drawn = []
    generate = make(PooledGenerator, janus, layer=None, window=4)
    branches = [cfg_pair(encoder.encode(text), janus.pad_token_id) for text in ("a cat", "two")]
    made = generate(branches, [(0, 0), (1, 0)], on_step)
    assert all(((tokens == made) | (tokens == -1)).all() for tokens in drawn)
    assert seen == counted == sorted(seen)
    assert seen[-1] == 16
    assert len(seen) == int(generate.forwards.max())


@pytest.mark.slow
def test_a_compiled_pass_draws_the_same_tokens(load, encoder):
    janus = load(torch.float32)
    settings = {"layer": 6, "strength": 0.2}
    expected = run(make(TokenGenerator, janus, **settings), janus, encoder)
    generate = make(PooledGenerator, janus, window=4, compile=True, **settings)
    assert torch.equal(run(generate, janus, encoder), expected)
    assert torch.equal(run(generate, janus, encoder, BATCH[:2]), expected[:2])


class AnyWidth:
    """Widths in place of those that are measured: every order of them is possible."""

    def __init__(self, widths):
        self.widths, self.used = widths, []

    def width(self, sequences):
        self.used.append(self.widths[len(self.used) % len(self.widths)])
        return self.used[-1]

    def note(self, *_):
        pass


WIDTHS = [[5, 1, 3, 2, 4, 4], [1], [2], [1, 5], [5, 5, 5, 1, 1]]
CUTS = [*product(WIDTHS, [1, 2, 3, 4, 9])]
CASES = [
    *((SETTINGS[1], *cut) for cut in CUTS),
    *(
        (settings, *CUTS[7 * place % len(CUTS)])
        for place, settings in enumerate(SETTINGS[::2] + MORE, start=1)
    ),
]
"""Every width and number of places under one setting, and every other setting with some of them."""


@pytest.mark.parametrize("case", [*CASES[:1], *slow(CASES[1:])], ids=str)
def test_refilled_rows_and_passes_of_any_width(case, load, encoder):
    """Prompts of other lengths follow in the same rows; the cache lasts from call to call."""
    settings, widths, places = case
    janus = load(torch.float32)
    batch = [*BATCH, (1, 4), (0, 2), (2, 7)]
    expected = run(make(TokenGenerator, janus, **settings), janus, encoder, batch)
    generate = make(PooledGenerator, janus, window=5, pool={"places": places}, **settings)
    for _ in range(2):
        generate.pace = AnyWidth(widths)
        assert torch.equal(run(generate, janus, encoder, batch), expected)
        assert {*generate.pace.used} == {*widths}
        assert (generate.forwards >= 1).all()
    assert generate._cache.rows <= 2 * max(places, 1)


@pytest.mark.parametrize("window", [1, 4])
def test_one_token_per_sequence(window, load, encoder):
    janus = load(torch.float32)
    expected = run(make(TokenGenerator, janus, layer=6), janus, encoder)[:, :1]
    made = make(PooledGenerator, janus, layer=6, window=window, pool={"places": 2}, tokens=1)
    assert torch.equal(run(made, janus, encoder), expected)


@pytest.mark.parametrize("window", [1, *slow([2, 5])])
@pytest.mark.parametrize("places", [1, 2, *slow([5])])
def test_sequences_that_stop_make_room(places, window, load, encoder):
    """Each stops at its own step, the first one too, repeats its stop token, and costs no more."""
    janus = load(torch.float32)
    whole = run(make(TokenGenerator, janus, layer=6), janus, encoder)
    stop_ids = [int(whole[0, 3]), int(whole[1, 9]), int(whole[3, 0])]
    pool = {"places": places, "stop_ids": stop_ids, "adapts": False}
    generate = make(PooledGenerator, janus, layer=6, window=window, pool=pool)
    made = run(generate, janus, encoder)
    lengths = []
    for row, expected in zip(made.tolist(), whole.tolist(), strict=True):
        ends = [place for place, token in enumerate(expected) if token in stop_ids]
        lengths.append(ends[0] + 1 if ends else len(expected))
        last = expected[lengths[-1] - 1]
        assert row == (expected[: lengths[-1]] + [last] * 99)[: len(row)]
    assert made.shape[1] == max(lengths)
    assert len({*lengths}) > 2
    assert 1 in lengths
    if window == 1:
        assert generate.forwards.tolist() == [length - 1 for length in lengths]


@pytest.mark.parametrize("adapts", [True, False])
def test_rows_stay_full_as_long_as_sequences_wait(adapts, load, encoder):
    janus = load(torch.float32)
    rows = []

    def note(_layer, args):
        if args[0].shape[1] <= 4:  # not a prefill
            rows.append(len(args[0]))

    pool = {"places": 2, "adapts": adapts}
    generate = make(PooledGenerator, janus, layer=None, window=4, cfg_weight=1.0, pool=pool)
    hook = janus.language_model.layers[0].register_forward_pre_hook(note)
    branches = [
        cfg_pair(encoder.encode(PROMPTS[prompt]), janus.pad_token_id)[:1]
        for prompt, _ in product(range(3), range(3))
    ]
    generate(branches, [RequestKey(*key) for key in product(range(3), range(3))])
    hook.remove()
    assert sum(rows) == int(generate.forwards.sum())  # nobody waits for the slowest
    assert rows == sorted(rows, reverse=True)
    assert rows.count(2) > 2 * rows.count(1)


@pytest.mark.slow
def test_equal_prompts_run_once(load, encoder):
    janus = load(torch.float32)
    prefills = []

    def note(_layer, args):
        if args[0].shape[1] > 4:
            prefills.append(len(args[0]))

    expected = run(make(TokenGenerator, janus, layer=6), janus, encoder)
    generate = make(PooledGenerator, janus, layer=6, window=4, pool={"places": 1})
    hook = janus.language_model.layers[0].register_forward_pre_hook(note)
    for _ in range(2):
        assert torch.equal(run(generate, janus, encoder), expected)
    hook.remove()
    assert sum(prefills) == 2 * len({prompt for prompt, _ in BATCH})


@pytest.mark.parametrize("places", [2, *slow([None, 1])])
@pytest.mark.parametrize("kind", [PooledGenerator, *slow([TokenGenerator])])
def test_what_is_not_finite_stays_in_its_own_sequence(kind, places, load, encoder):
    """Rows are used again: by the next call, and in a pool by the next sequence."""
    janus = load(torch.float32)
    embed = janus.image_head.embed
    tokens = run(make(TokenGenerator, janus, layer=6), janus, encoder)
    only = {*tokens[0].tolist()} - {*tokens[1:].flatten().tolist()}
    place = next(place for place, token in enumerate(tokens[0].tolist()) if token in only)
    bad = int(tokens[0, place])

    def spoilt(tokens):
        return embed(tokens).masked_fill((tokens == bad)[..., None], float("nan"))

    pool = {"window": 1, "places": places} if kind is PooledGenerator else {}
    generate = make(kind, janus, layer=6, pool=pool)
    object.__setattr__(janus.image_head, "embed", spoilt)
    try:
        with pytest.raises(NotFiniteError) as caught:
            run(generate, janus, encoder)
    finally:
        object.__setattr__(janus.image_head, "embed", embed)
    assert caught.value.steps == {0: place + 1}
    assert torch.equal(caught.value.tokens[1:], tokens[1:])
    assert torch.equal(run(generate, janus, encoder), tokens)


@pytest.fixture
def predict(main_here, tiny_checkpoint, tmp_path):
    (tmp_path / "prompt.json").write_text('["a cat", "two blue birds on a branch"]')

    def run(output, *args):
        return main_here(
            tmp_path, "predict", *CPU, f"--model.model_path={tiny_checkpoint}",
            "--model.parallel_size=3", f"--writer.output_dir={output}",
            "--writer.save_tokens=true", "--model.inspect=[[1, 2]]", *args,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_a_run_makes_the_same_files_and_says_how_many_passes(predict, tmp_path):
    assert predict("plain").returncode == 0
    assert predict("fast", "--model.speculative=4").returncode == 0
    assert images_of(tmp_path / "fast") == images_of(tmp_path / "plain")
    for record in records(tmp_path / "plain"):
        assert "forwards" not in record
    for record in records(tmp_path / "fast"):
        assert 1 <= record["forwards"] <= 15
        assert "speculative" not in record
    one, two = (next((tmp_path / name).glob("*/*.inspect.png")) for name in ("plain", "fast"))
    assert one.read_bytes() == two.read_bytes()
    # In float32 either continues the other.
    next((tmp_path / "plain").glob("*/img_01.jpg")).unlink()
    assert predict("plain", "--model.speculative=4").returncode == 0
    assert images_of(tmp_path / "fast") == images_of(tmp_path / "plain")


@pytest.mark.slow
def test_in_low_precision_the_window_is_a_setting_of_the_image(predict, tmp_path):
    low = "--trainer.precision=bf16-true"
    assert predict("out", low, "--model.speculative=4").returncode == 0
    assert all(record["speculative"] == 4 for record in records(tmp_path / "out"))
    done = predict("out", low)
    assert done.returncode == 1
    assert "speculative was 4, is null" in done.stderr
    assert predict("out", low, "--model.speculative=4").returncode == 0


@pytest.mark.parametrize("value", ["1", "0", "-3", "1.5", "2000"])
def test_windows_that_cannot_be(value, predict, tmp_path):
    done = predict("out", f"--model.speculative={value}")
    assert done.returncode == 2
    assert "model.speculative" in done.stderr
