"""Speculative Jacobi decoding draws the very tokens of one-at-a-time decoding."""

import json

import pytest
import torch

from lit_dola.data.requests import RequestKey
from lit_dola.decoding.jacobi import SpeculativeGenerator
from lit_dola.decoding.loop import NotFiniteError, TokenGenerator, cfg_pair
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


def make(kind, janus, *, layer, compile=False, window=None, **scoring):
    more = {"window": window} if window else {}
    return kind(
        janus, janus.image_head, make_scoring(**scoring), layer=layer,
        max_new_tokens=janus.num_image_tokens, compile=compile, **more,
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
    generate = make(SpeculativeGenerator, janus, window=window, **settings)
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
    generate = make(SpeculativeGenerator, janus, window=16, **settings)
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
    for kind, window in ((TokenGenerator, None), (SpeculativeGenerator, 4)):
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
        if args[0].shape[1] == 10:  # not a prefill
            rows.append(len(args[0]))

    expected = run(make(TokenGenerator, janus, **settings), janus, encoder, batch, prompts)
    generate = make(SpeculativeGenerator, janus, window=10, **settings)
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
    generate = make(SpeculativeGenerator, janus, layer=None, window=4)
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
    generate = make(SpeculativeGenerator, janus, window=4, compile=True, **settings)
    assert torch.equal(run(generate, janus, encoder), expected)
    assert torch.equal(run(generate, janus, encoder, BATCH[:2]), expected[:2])


def test_stop_tokens_are_refused(load):
    janus = load(torch.float32)
    with pytest.raises(ValueError, match="stop tokens"):
        SpeculativeGenerator(
            janus,
            janus.image_head,
            make_scoring(),
            layer=None,
            max_new_tokens=4,
            window=2,
            stop_ids=[1],
        )


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
