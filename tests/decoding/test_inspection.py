"""The figures of an inspection against plain float64, and the files that a run writes."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from lit_dola import LitDoLa
from lit_dola.data.requests import RequestKey
from lit_dola.decoding.inspection import inspect_tokens
from lit_dola.decoding.loop import cfg_pair
from lit_dola.decoding.pool import token_generator
from lit_dola.decoding.sampling import EntropyTemperature
from lit_dola.errors import UserError
from tests.support import forked, reference
from tests.support.commands import CPU, messages
from tests.support.images import ImageGenerator, slow
from tests.support.scoring import make_scoring

PROMPT = "two blue birds on a branch"
KEY = RequestKey(4, 2)
LAYER = 5
SCORING = make_scoring(alpha=0.3, cfg_weight=3.0, temperature=0.7, seed=11)
CASES = [
    {}, {"mid_norm": True}, {"apc": "union"}, {"apc": "intersection", "alpha": 0.6},
    {"apc": "per_branch"}, {"temperature": 0.0}, {"top_k": 5}, {"cfg_weight": 1.0, "top_p": 0.8},
    {"strength": 0.2, "mid_norm": True}, {"strength": 0.0, "min_p": 0.1}, {"alpha": 0.0},
    {"entropy_temperature": EntropyTemperature(2.5, 3.0, 0.6)},
]  # fmt: skip


@pytest.fixture(scope="module")
def inspect(load, encoder):
    """Draw an image's tokens and inspect them."""
    janus = load(torch.float32)

    def run(**changes):
        scoring = replace(SCORING, **changes)
        ids = encoder.encode(PROMPT)
        (tokens,) = ImageGenerator(janus, layer=LAYER, **asdict(scoring))([ids], [KEY])
        branches = cfg_pair(ids, janus.pad_token_id)
        return inspect_tokens(janus, scoring, LAYER, branches, tokens, KEY), tokens

    return run


def temperature_of(scores, scoring):
    if scoring.entropy_temperature is None:
        return scoring.temperature
    span, scale, floor = scoring.entropy_temperature
    return scoring.temperature * (span * np.exp(-reference.entropy(scores) / scale) + floor)


def plain_step(logits, noise, scoring):
    """The figures of one step, by their definitions."""
    cond_final, uncond_final, cond_mid, _ = logits
    final, mid = reference.log_softmax(cond_final), reference.log_softmax(cond_mid)
    between = np.log((np.exp(final) + np.exp(mid)) / 2)
    divergence = sum((np.exp(q) * (q - between)).sum() / 2 for q in (final, mid))
    cond, uncond = (reference.head_set(x, scoring.alpha) for x in (cond_final, uncond_final))
    allowed = {"union": cond | uncond, "intersection": cond & uncond}.get(scoring.apc, cond)
    allowed = allowed if allowed.any() else cond
    how = {name: getattr(scoring, name) for name in ("alpha", "strength", "cfg_weight", "apc")}
    scores = [reference.fuse(x, **how) for x in (logits[:2], logits)]
    names = ("temperature", "top_k", "top_p", "min_p", "entropy_temperature")
    drawing = {name: getattr(scoring, name) for name in names}
    entropies = [0.0, 0.0]
    if scoring.temperature:
        entropies = [reference.entropy(s / temperature_of(s, scoring)) for s in scores]
    baseline_token = reference.draw(scores[0], noise, **drawing)
    return baseline_token, allowed.sum(), divergence, *entropies


@torch.no_grad()
def plain_inspection(janus, ids, pad, tokens, scoring):
    """The figures of every step of an image, one after the other, in float64."""
    uncond = [ids[0]] + [pad] * (len(ids) - 2) + [ids[-1]]
    inputs = janus.embed(torch.tensor([ids, uncond]))
    steps = []
    for step, token in enumerate(tokens.tolist()):
        states = janus.hidden_states(inputs)
        mid = states[LAYER][:, -1]
        mid = janus.norm(mid) if scoring.mid_norm else mid
        logits = [row.numpy() for x in (states[-1][:, -1], mid) for row in janus.gen_head(x)]
        noise = reference.gumbel(scoring.seed, *KEY, step, len(logits[0]))
        steps.append(plain_step(logits, noise, scoring))
        inputs = torch.cat([inputs, janus.embed_image(torch.tensor([[token], [token]]))], dim=1)
    return [np.array(values) for values in zip(*steps)]


@pytest.mark.parametrize("changes", [*CASES[:2], *slow(CASES[2:])], ids=str)
def test_figures_are_those_of_the_plain_reference(inspect, reference_model, encoder, changes):
    found, tokens = inspect(**changes)
    scoring, ids = replace(SCORING, **changes), encoder.encode(PROMPT)
    baseline, head_size, divergence, before, after = plain_inspection(
        reference_model, ids, encoder.pad_token_id, tokens, scoring
    )
    assert found.token.tolist() == tokens.tolist()
    assert found.baseline_token.tolist() == baseline.tolist()
    assert found.head_size.tolist() == head_size.tolist()
    assert found.divergence.numpy() == pytest.approx(divergence, abs=1e-5)
    assert found.entropy_before.numpy() == pytest.approx(before, abs=1e-4)
    if scoring.apc == "per_branch":  # its float32 scores collapse in rounding: see the next test
        after = found.entropy_after.numpy()
    assert found.entropy_after.numpy() == pytest.approx(after, abs=1e-4)
    assert {values.dtype for values in found[:3]} == {torch.int32}
    assert {values.dtype for values in found[3:]} == {torch.float32}


def test_the_seed_s_masking_draws_uniformly_among_some_tokens(inspect):
    found, _ = inspect(apc="per_branch")
    equal = found.entropy_after[0].double().exp().item()
    assert equal == pytest.approx(round(equal), abs=1e-3)
    assert equal > 1


def test_the_figures_say_something(inspect):
    found, _ = inspect()
    assert (found.token != found.baseline_token).any()
    assert len(set(found.head_size.tolist())) > 3
    assert 0 < found.divergence.min() < found.divergence.max() < np.log(2)


@pytest.fixture
def predict(tmp_path, tiny_checkpoint):
    """Run ``predict`` on two prompts, two images each."""
    (tmp_path / "two.json").write_text('["a red apple", "two blue birds on a branch"]')

    def run(*args):
        small = [
            *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2",
            "--data.prompt_json=two.json", "--writer.output_dir=out", "--writer.save_tokens=true",
        ]  # fmt: skip
        return forked.run(tmp_path, ["predict", *small, *args])

    return run


@pytest.mark.slow
def test_a_run_leaves_figures_and_a_plot_of_chosen_images(predict, tmp_path):
    assert predict().returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("img_*.jpg")}
    done = predict("--model.inspect=[[1, 0]]")  # of an image that exists already
    assert (done.returncode, messages(done.stderr)) == (0, "")
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("img_*.jpg")}
    assert before == after
    (npz,) = (tmp_path / "out").rglob("*.npz")
    assert npz.name == "img_00.inspect.npz"
    figures = np.load(npz)
    assert set(figures) == {
        "token", "baseline_token", "head_size", "divergence", "entropy_before", "entropy_after",
    }  # fmt: skip
    tokens = np.load(npz.with_name("img_00.npy"))
    assert np.array_equal(figures["token"], tokens.reshape(4, 4))
    with Image.open(npz.with_suffix(".png")) as plot:
        assert plot.width > 800
        assert len(plot.convert("RGB").getcolors(1 << 20)) > 500
    lines = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").open()]
    assert [line.get("inspection") for line in lines] == [
        None, None, npz.relative_to(tmp_path / "out").with_suffix(".png").as_posix(), None,
    ]  # fmt: skip
    assert "img_00.inspect.png" in (tmp_path / "out/index.html").read_text("utf-8")
    made = npz.stat().st_mtime_ns
    assert predict("--model.inspect=[[1, 0]]").returncode == 0
    assert npz.stat().st_mtime_ns == made  # nothing left to do


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--model.inspect=[[1, 2]]"],
            "model.inspect: [1, 2] is not an image of this run; expected",
        ),
        (["--model.inspect=[[0, 0]]", "--model.dola=false"], "model.inspect: DoLa is off"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_inspected_is_an_error_before_anything_is_generated(
    predict, tmp_path, args, message
):
    done = predict(*args)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not [*tmp_path.rglob("img_*")]


def test_a_sharded_model_is_refused(tiny_checkpoint):
    model = LitDoLa(str(tiny_checkpoint), inspect=[(0, 0)])
    with pytest.raises(UserError, match=r"model.inspect: a sharded model cannot be inspected"):
        model.check_sharded()


@pytest.mark.slow
def test_overwriting_a_run_takes_its_inspections_away(predict, tmp_path):
    assert predict("--model.inspect=[[0, 0]]", "--writer.grid=true").returncode == 0
    done = predict("--model.seed=1", "--writer.on_mismatch=overwrite")
    assert done.returncode == 0
    assert not [*tmp_path.rglob("*.inspect.*"), *tmp_path.rglob("grid.jpg")]


def test_a_negative_prompt_is_inspected_too(load, encoder):
    """Its own tokens are those that the inspection draws again, whatever its length."""
    janus = load(torch.float32)
    ids = encoder.encode(PROMPT)
    for negative in ("no", "a text that is longer than the prompt, much longer, by all means"):
        branches = cfg_pair(ids, janus.pad_token_id, encoder.encode(negative))
        generate = token_generator(
            janus, janus.image_head, SCORING.baseline, layer=None, max_new_tokens=16
        )
        (tokens,) = generate([branches], [KEY])
        found = inspect_tokens(janus, SCORING, LAYER, branches, tokens, KEY)
        assert found.baseline_token.tolist() == tokens.tolist()
