"""``verify``: every promise holds here, and each one that is broken is said to fail."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from lit_dola.decoding import guidance, pace, places, scoring, step
from lit_dola.janus import loading
from lit_dola.janus.model import TransformersJanus
from lit_dola.verification import measure, promises, subject, verify
from lit_dola.verification.findings import Row, table_of, worst_of
from tests.support import forked, original
from tests.support.commands import CPU, one_line
from tests.tasks.test_compiled import make_broken

pytestmark = pytest.mark.slow

PROMISES = [
    "checkpoint: weights", "checkpoint: conversation", "checkpoint: token ids",
    "logits: transformers' forward pass", "logits: greedy tokens", "dola: scores in float64",
    "dola: strength 0 and alpha 0", "pixels: VQ decoder", "pixels: JPEG", "same image: alone",
    "same image: among others", "same image: in another order", "speculative: tokens",
]  # fmt: skip
FIGURES = [
    "checkpoint: layout", "checkpoint: fingerprint", "compiled step: tokens",
    "speed: bandwidth of a copy", "speed: matrix products", "speed: step, 4 images",
    "speed: images", "speed: peak memory", "speed: largest batch", "speed: step, 1 image",
    "fastest: 1 image", "fastest: 4 images", "speed: DoLa over baseline, 4 images",
]  # fmt: skip


def shorten(setattr=setattr):
    """Leave the measurements as few steps as they can have."""
    setattr(subject, "_TURN", 0.0)
    setattr(subject, "_LONG", 0.0)
    setattr(measure, "_COPIED_BYTES", {"cpu": 2**18})
    setattr(measure, "_MATRIX", {"cpu": 64})


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    shorten(monkeypatch.setattr)


@pytest.fixture
def no_figures(monkeypatch):
    for name in ("measure_fitting", "measure_loops", "measure_dola"):
        monkeypatch.setattr(verify, name, lambda *_: iter(()))


@pytest.fixture(scope="module")
def original_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "Janus-Pro-tiny"
    config = original.make_config(64, 128, 4, 4, vocab_size=512, image_size=64)
    original.write_config(folder, config)
    weights = original.small_weights(config)
    original.write_weights(folder, weights, "pytorch_model.bin", shards=2)
    return folder


@pytest.fixture
def run(main_here, tiny_checkpoint, tmp_path):
    """Verify a checkpoint; returns what was printed, and the rows by name."""

    def run(*args, checkpoint=tiny_checkpoint):
        done = main_here(
            tmp_path, "verify", *CPU, f"--model.model_path={checkpoint}",
            "--model.images_per_batch=4", "--model.speculative=4", *args,
        )  # fmt: skip
        done.content = json.loads((tmp_path / "verify.json").read_text())
        done.rows = {row["name"]: row for row in done.content["rows"]}
        return done

    return run


def names_of_failures(done):
    return [name for name, row in done.rows.items() if row["ok"] is False]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("layout", ["janus", "multi_modality"])
def test_every_promise_holds(layout, precision, run, tiny_checkpoint, original_checkpoint):
    checkpoint = tiny_checkpoint if layout == "janus" else original_checkpoint
    done = run(f"--trainer.precision={precision}", checkpoint=checkpoint)
    assert done.returncode == 0, done.stdout
    assert [name for name, row in done.rows.items() if row["ok"]] == PROMISES
    assert {name for name, row in done.rows.items() if row["ok"] is None} == {*FIGURES}
    assert done.content["ok"] is True
    assert (done.content["left_out"], done.content["precision"]) == ([], precision)
    assert done.content["versions"]["torch"] == torch.__version__
    assert layout in done.rows["checkpoint: layout"]["found"]
    for name, row in done.rows.items():
        (line,) = [line for line in done.stdout.splitlines() if line[8:].startswith(f"{name}  ")]
        assert line.startswith("ok" if row["ok"] else " ")
        assert line.endswith(row["found"])


def swap_weights(patch):
    load = loading.load_weights

    def load_swapped(model, *args, **settings):
        load(model, *args, **settings)
        attention = model.model.language_model.layers[0].self_attn
        query, key = attention.q_proj, attention.k_proj
        query.weight, key.weight = key.weight, query.weight

    patch(loading, "load_weights", load_swapped)


def write_one_slot_too_early(patch):
    view = step.StepView
    patch(step, "StepView", lambda cache, slots, length: view(cache, slots - 1, length))


def leak_between_neighbours(patch):
    run_layers = step.forward_layers

    def leak(*args, **settings):
        states = run_layers(*args, **settings)
        return states + 0.1 * states.mean(dim=1, keepdim=True) if states.shape[1] > 2 else states

    patch(step, "forward_layers", leak)


def guide_the_wrong_way(patch):
    for module in (guidance, scoring):
        patch(
            module, "classifier_free_guidance", lambda cond, uncond, w: cond - w * (cond - uncond)
        )


def subtract_half_of_the_layer(patch):
    score = step.score_features

    def halved(features, linear, it):
        return score(features, linear, replace(it, strength=it.strength / 2))

    patch(step, "score_features", halved)


def widen_the_head_set(patch):
    score = step.score_features
    patch(step, "score_features", lambda features, linear, it: score(
        features, linear, replace(it, alpha=it.alpha / 10)
    ))  # fmt: skip


def change_the_baseline(patch):
    changed = property(lambda contrast: replace(contrast, alpha=1.0, strength=0.0))
    patch(scoring.Scoring, "baseline", changed)


def accept_every_guess(patch):
    accept = places.Pool.accept

    def accept_all(state, inputs, drawn):
        accept(state, torch.cat([inputs[:, :1], drawn.tokens[:, :-1]], dim=1), drawn)

    patch(places.Pool, "accept", accept_all)
    # Passes of any width would then draw other images each time.
    patch(pace.Pace, "width", lambda chosen, sequences: chosen.window)


def decode_to_nan(patch):
    patch(TransformersJanus, "decode_image_tokens",
          lambda janus, tokens: torch.full((len(tokens), 3, 16, 16), torch.nan))  # fmt: skip


def write_black(patch):
    encode = promises.encode_image

    def encode_black(image, *args):
        return encode(Image.new("RGB", image.size), *args)

    patch(promises, "encode_image", encode_black)


def cut_off_files(patch):
    encode = promises.encode_image
    patch(promises, "encode_image", lambda *args: encode(*args)[:-2])


def compile_to_other_tokens(patch):
    class Patch:
        setattr = staticmethod(patch)

    make_broken("other tokens", Patch)


def compile_nothing(patch):
    class Patch:
        setattr = staticmethod(patch)

    make_broken("compiler", Patch)


SAME = ["same image: alone", "same image: among others", "same image: in another order"]
BREAKS = {
    swap_weights: ["checkpoint: weights"],
    write_one_slot_too_early: ["logits: transformers' forward pass", "logits: greedy tokens"],
    guide_the_wrong_way: ["logits: greedy tokens"],
    subtract_half_of_the_layer: ["dola: scores in float64"],
    widen_the_head_set: ["dola: scores in float64"],
    change_the_baseline: ["dola: strength 0 and alpha 0"],
    leak_between_neighbours: SAME[:1],
    accept_every_guess: ["speculative: tokens"],
    decode_to_nan: ["pixels: VQ decoder"],
    write_black: ["pixels: JPEG"],
    cut_off_files: ["pixels: JPEG"],
    compile_to_other_tokens: ["compiled step: tokens"],
    compile_nothing: ["compiled step: tokens"],
}
"""Deliberate breaks, and the rows that must fail; others may, too."""
ALONE = {"swap_weights", "accept_every_guess", "decode_to_nan", "write_black", "cut_off_files",
         "compile_to_other_tokens", "compile_nothing", "subtract_half_of_the_layer",
         "widen_the_head_set"}  # fmt: skip
"""Breaks of which no other row may fail."""


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("break_it", BREAKS, ids=lambda it: it.__name__)
def test_a_broken_promise_is_named(break_it, precision, run, no_figures, monkeypatch):
    break_it(monkeypatch.setattr)
    done = run(f"--trainer.precision={precision}")
    failed = names_of_failures(done)
    assert {*BREAKS[break_it]} <= {*failed}
    if break_it.__name__ in ALONE:
        assert failed == BREAKS[break_it]
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith(f"error: verify.json: {len(failed)} of ")
    assert line.endswith(f" promises fail: {', '.join(failed)}")
    assert "Traceback" not in done.stderr
    assert done.content["ok"] is False
    for name in failed:
        row = done.rows[name]
        assert row["expected"]
        assert row["advice"]
        assert f"FAILED  {name}" in done.stdout
        assert f"{row['found']}; expected {row['expected']}\n" in done.stdout
        assert f"  try {row['advice']}\n" in done.stdout


def test_a_template_that_is_cut(run, no_figures, tiny_checkpoint, tmp_path):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "cut")
    template = checkpoint / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|Assistant|>:", ""))
    done = run(checkpoint=checkpoint)
    assert names_of_failures(done) == ["checkpoint: conversation"]
    assert "--model.roles pro" in done.rows["checkpoint: conversation"]["advice"]


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, AssertionError])
def test_a_check_that_raises_has_failed_and_the_others_go_on(error, run, no_figures, monkeypatch):
    def fail(*_args, **_settings):
        raise error("no kernel image is available\nfor this device")

    monkeypatch.setattr(verify, "check_logits", fail)
    done = run()
    assert names_of_failures(done) == ["logits: error"]
    assert done.rows["logits: error"]["found"] == f"{error.__name__}: no kernel image is available"
    assert {*PROMISES} - {*done.rows} == {name for name in PROMISES if name.startswith("logits")}


@pytest.mark.parametrize("damage", ["no folder", "no weights", "no tokenizer", "no config"])
def test_a_checkpoint_that_cannot_be_loaded(damage, run, tiny_checkpoint, tmp_path):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "damaged")
    name = {"no weights": "model.safetensors", "no tokenizer": "tokenizer.json",
            "no config": "config.json"}  # fmt: skip
    shutil.rmtree(checkpoint) if damage == "no folder" else (checkpoint / name[damage]).unlink()
    done = run(checkpoint=checkpoint)
    one_line(done, 1, "verify.json: 1 of 1 promises fail: checkpoint: loading")
    assert names_of_failures(done) == ["checkpoint: loading"]
    assert str(checkpoint) in done.stdout


def test_settings_of_the_command_line_are_no_findings(main_here, tmp_path, tiny_checkpoint):
    own = [*CPU, f"--model.model_path={tiny_checkpoint}"]
    done = main_here(tmp_path, "verify", *own, "--trainer.precision=bf16-mixed")
    one_line(done, 1, "trainer.precision: bf16-mixed; expected 32-true, ")
    assert not (tmp_path / "verify.json").exists()
    (tmp_path / "file").touch()
    done = main_here(tmp_path, "verify", *own, "--output=file/verify.json")
    one_line(done, 1, "output: cannot write to ")
    for minutes in ("0", "-1", "nan", "soon"):
        assert main_here(tmp_path, "verify", *own, f"--minutes={minutes}").returncode == 2


def test_what_there_is_no_time_for_is_left_out(run):
    done = run("--minutes=1e-9")
    assert (done.returncode, done.stderr) == (0, "")
    last = "left out after 1e-09 minutes: checkpoint, logits, dola, pixels, same image, speed,"
    assert f"{last} speculative, loops, DoLa over baseline; try --minutes\n" in done.stdout
    assert [*done.rows] == ["compiled step: tokens"]
    assert done.content["left_out"][0] == "checkpoint"


@pytest.mark.parametrize("finite", [True, False])
def test_quantized(finite, run, monkeypatch):
    def quantize(janus, how, device):
        if how == "int4wo":
            raise verify.UserError("int4wo on this device", setting="model.quantize")
        if not finite:
            janus.image_head.linear.weight.fill_(torch.nan)

    monkeypatch.setattr(loading, "quantize_weights", quantize)
    monkeypatch.setattr(verify, "require", lambda *args, **settings: None)
    done = run("--quantized=true")
    found = {name: row["ok"] for name, row in done.rows.items() if name.startswith("quantized")}
    assert found == {
        "quantized: int8wo": finite, "quantized: int4wo": None, "quantized: float8wo": finite
    }  # fmt: skip
    assert done.rows["quantized: int4wo"]["found"].startswith("not here: model.quantize: int4wo")
    assert names_of_failures(done) == [name for name, ok in found.items() if ok is False]


def break_second_rank(name):
    import os

    shorten()
    if os.environ["SLURM_PROCID"] == "1" and name:
        {it.__name__: it for it in BREAKS}[name](setattr)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["", "decode_to_nan", "write_one_slot_too_early"])
def test_every_rank_verifies_and_the_first_prints_the_worst(name, tiny_checkpoint, tmp_path):
    args = [
        "verify", "--trainer.accelerator=cpu", "--trainer.devices=2",
        f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=1",
        "--model.images_per_batch=2", "--trainer.precision=32-true",
    ]  # fmt: skip
    done = forked.run_ranks(tmp_path, 2, args, breaking=break_second_rank, details=[name])
    assert [each.returncode for each in done] == [bool(name)] * 2, done
    assert done[1].stdout == ""
    content = json.loads((tmp_path / "rank0/verify.json").read_text())
    assert content["devices"] == 2
    assert content["ok"] is not bool(name)
    failed = [row for row in content["rows"] if row["ok"] is False]
    assert {row["rank"] for row in failed} == ({1} if name else set())
    assert done[0].stdout.count("(rank 1)") == len(failed)
    by_name = {it.__name__: failures for it, failures in BREAKS.items()}
    assert {row["name"] for row in failed} >= {*by_name.get(name, [])}


def test_the_worst_of_ranks():
    good, bad = Row("a", "fine", "fine", True), Row("a", "not fine", "fine", False)
    figure = Row("b", "7")
    rows = worst_of([[good, figure], [bad, replace(figure, found="9")], [bad]])
    assert rows == [replace(bad, rank=1), figure]
    assert worst_of([[], [figure]]) == [replace(figure, rank=1)]
    assert table_of(rows, 3) == (
        "FAILED  a  not fine; expected fine (rank 1)\n        b  7"
    )  # fmt: skip
