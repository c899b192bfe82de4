"""Trained readouts, and the contrast that guides: against the plain float64 loop, in whole runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_dola import JanusPipeline, UserError
from lit_dola.decoding.guidance import guide_by_layer, guide_from_features
from lit_dola.decoding.loop import cfg_pair
from lit_dola.decoding.pool import token_generator
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.lens import LensFile, lens_content
from tests.support.commands import CPU, one_line, records
from tests.support.images import BATCH, PROMPTS, expected, slow
from tests.support.scoring import make_scoring

LAYERS = (2, 3, 6)


def random_lens(size=128, seed=0):
    torch.manual_seed(seed)
    lens = nn.Linear(size, size).requires_grad_(False)
    nn.init.normal_(lens.weight, std=0.3 * size**-0.5)
    nn.init.normal_(lens.bias, std=0.2)
    return lens


def write_lens(path, checkpoint, layers=LAYERS, size=128, head="image", seed=0):
    readouts = {layer: random_lens(size, seed=seed + layer) for layer in layers}
    path.write_bytes(lens_content(readouts, checkpoint, head, {"steps": 0}))
    return path


@pytest.fixture
def lens_file(tiny_checkpoint, tmp_path):
    return write_lens(tmp_path / "lens.safetensors", Checkpoint.open(str(tiny_checkpoint)))


@pytest.mark.parametrize("window", [None, *slow([4])])
@pytest.mark.parametrize("with_lens", [True, *slow([False])])
@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 1.0, "cfg_weight": 1.0},
        {"beta": 1.5, "cfg_weight": 2.5, "apc": "union", "alpha": 0.02},
        {"cfg_weight": 2.0},
        *slow(
            [
                {"beta": 2.0, "cfg_weight": 1.0, "alpha": 0.005, "mid_norm": True},
                {"beta": 0.5, "cfg_weight": 2.0},
                {"beta": 0.0, "cfg_weight": 2.0},
                {"cfg_weight": 1.0, "strength": 0.4, "alpha": 0.02},
            ]
        ),
    ],
    ids=str,
)
def test_against_the_plain_loop_in_float64(
    settings, with_lens, window, load, encoder, reference_model
):
    janus, lens = load(torch.float64), random_lens().double() if with_lens else None
    contrast = "guide" if "beta" in settings else "dola"
    scoring = make_scoring(**settings, contrast=contrast)
    generate = token_generator(
        janus, janus.image_head, scoring, layer=3, max_new_tokens=16, lens=lens, window=window
    )
    rows = 2 if scoring.uses_guidance else 1
    prompts = [
        cfg_pair(encoder.encode(PROMPTS[prompt]), janus.pad_token_id)[:rows] for prompt, _ in BATCH
    ]
    tokens = generate(prompts, BATCH).tolist()
    plain = {**settings, "lens": (lens.weight, lens.bias) if with_lens else None, "layer": 3}
    assert tokens == expected(reference_model, encoder, guesses=tokens, **plain)


@pytest.mark.parametrize("apc", ["cond", "union", "intersection"])
@pytest.mark.parametrize("cfg_weight", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("branches", [1, 2])
def test_both_forms_agree(branches, cfg_weight, apc):
    torch.manual_seed(1)
    linear = nn.Linear(8, 50)
    final, mid = torch.randn(branches, 7, 8), torch.randn(7, 8)
    how = {"alpha": 0.1, "cfg_weight": cfg_weight, "beta": 0.7, "apc": apc}
    plain = guide_by_layer(linear(final), linear(mid), **how)
    fused, own = guide_from_features(final, mid, linear, **how)
    torch.testing.assert_close(own, linear(final)[0])
    assert torch.equal(plain.isfinite(), fused.isfinite())
    inside = plain.isfinite()
    assert inside.any(dim=-1).all()
    torch.testing.assert_close(
        plain.log_softmax(-1)[inside], fused.log_softmax(-1)[inside], atol=1e-5, rtol=1e-5
    )


def test_beta_0_is_the_head_set_alone():
    final, mid = torch.randn(2, 7, 50), torch.randn(7, 50)
    how = {"alpha": 0.1, "cfg_weight": 2.0}
    scores = guide_by_layer(final, mid, beta=0.0, **how)
    other = guide_by_layer(final, torch.randn(7, 50), beta=0.0, **how)
    assert torch.equal(scores, other)
    assert not make_scoring(contrast="guide", beta=0.0).uses_mid
    assert make_scoring(contrast="guide", beta=0.1, strength=0.0).uses_mid
    assert not make_scoring(contrast="guide", beta=1.0).baseline.uses_mid


def test_the_header(lens_file, tiny_checkpoint):
    lens = LensFile.open(lens_file)
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    assert (lens.layers, lens.head, lens.hidden_size) == (LAYERS, "image", 128)
    assert lens.training == {"steps": 0}
    assert lens.weights == checkpoint.weights_digest
    lens.check(checkpoint, "image", 3)
    readout = lens.readout(3, torch.bfloat16, torch.device("cpu"))
    assert readout.weight.dtype == torch.bfloat16
    assert torch.equal(readout.bias, random_lens(seed=3).bias.bfloat16())
    assert not readout.weight.requires_grad


def test_a_lens_beside_the_weights_changes_no_fingerprint(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "with-lens")
    before = Checkpoint.open(str(folder))
    found = before.fingerprint, before.weights_digest
    write_lens(folder / "lens.safetensors", before)
    after = Checkpoint.open(str(folder))
    assert (after.fingerprint, after.weights_digest) == found


@pytest.fixture
def predict(main_here, tiny_checkpoint, tmp_path):
    def run(*args):
        return main_here(
            tmp_path, "predict", *CPU, f"--model.model_path={tiny_checkpoint}",
            "--data.prompts=a cat", "--model.parallel_size=2", "--writer.output_dir=out",
            "--model.layer=3", "--model.contrast=guide", "--model.cfg_weight=1", *args,
        )  # fmt: skip

    return run


def broken_file(kind, path, checkpoint):
    """Write what is not a lens of this checkpoint's image head."""
    if kind == "text":
        path.write_text("no lens")
    elif kind == "weights":
        shutil.copy(Path(checkpoint.folder) / "model.safetensors", path)
    elif kind == "cut":
        content = write_lens(path, checkpoint).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "shapes":
        about = {"layers": [3], "hidden_size": 128, "head": "image", "weights": "", "training": {}}
        save_file({"layers.3.weight": torch.zeros(4)}, path, {"lit_dola_lens": json.dumps(about)})
    elif kind == "size":
        write_lens(path, checkpoint, size=64)
    elif kind == "head":
        write_lens(path, checkpoint, head="text")
    elif kind == "layer":
        write_lens(path, checkpoint, layers=(2, 5))
    elif kind == "checkpoint":
        other = shutil.copytree(checkpoint.folder, path.parent / "other")
        weights = other / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
        write_lens(path, Checkpoint.open(str(other)))


BROKEN = {
    "nothing": "model.lens: lens.safetensors: not found; expected a file that main.py lens has",
    "text": "model.lens: lens.safetensors: not a lens; expected a file that main.py lens has",
    "weights": "model.lens: lens.safetensors: not a lens; expected",
    "cut": "model.lens: lens.safetensors: not a lens; expected",
    "shapes": "model.lens: lens.safetensors: not a lens; expected",
    "size": "model.lens: lens.safetensors: hidden size 64; expected 128",
    "head": "model.lens: lens.safetensors: a lens of the text head; expected one of the image",
    "layer": "lens.safetensors: no lens of layer 3; expected model.layer to be one of 2, 5",
    "checkpoint": "lens.safetensors: trained for a checkpoint with other weights; expected a lens",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BROKEN)
def test_a_lens_that_does_not_fit_is_a_line(kind, predict, tiny_checkpoint, tmp_path, monkeypatch):
    broken_file(kind, tmp_path / "lens.safetensors", Checkpoint.open(str(tiny_checkpoint)))
    monkeypatch.setattr("lit_dola.tasks.generate.load_janus", None)  # before the model is loaded
    one_line(predict("--model.lens=lens.safetensors"), 1, BROKEN[kind])


@pytest.mark.slow
def test_a_policy_that_the_form_does_not_have(predict):
    one_line(predict("--model.apc=per_branch"), 1, "model.apc: per_branch does not apply to")


@pytest.mark.slow
def test_records_and_the_next_run(predict, lens_file, tiny_checkpoint, tmp_path):
    given = f"--model.lens={lens_file}"
    done = predict(given)
    assert done.returncode == 0, done.stderr
    settings, _ = records(tmp_path / "out")
    expected = {"contrast": "guide", "beta": 1.0, "lens": str(lens_file), "layer": 3}
    assert {name: settings[name] for name in expected} == expected
    assert settings["lens_digest"] == LensFile.open(lens_file).digest
    moved = shutil.copy(lens_file, tmp_path / "moved.safetensors")
    assert "nothing to do" in predict(f"--model.lens={moved}").stderr
    for other in ([], ["--model.beta=2", given], ["--model.contrast=dola", given]):
        one_line(predict(*other), 1, "out holds results of another run: ")
    write_lens(lens_file, Checkpoint.open(str(tiny_checkpoint)), seed=1)
    one_line(predict(given), 1, "lens_digest was")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_an_image_does_not_depend_on_its_batch(precision, predict, lens_file, tmp_path):
    given = [f"--model.lens={lens_file}", f"--trainer.precision={precision}",
             "--writer.save_tokens=true", "--writer.on_mismatch=overwrite"]  # fmt: skip
    found = []
    for size in (1, 2):
        assert predict(*given, f"--model.images_per_batch={size}").returncode == 0
        found.append([path.read_bytes() for path in sorted(tmp_path.glob("out/*/*.npy"))])
    assert len(found[0]) == 2
    assert found[0] == found[1]


@pytest.mark.slow
def test_from_python(lens_file, tiny_checkpoint):
    pipeline = JanusPipeline.from_pretrained(str(tiny_checkpoint))
    how = {"contrast": "guide", "beta": 1.0, "layer": 3, "cfg_weight": 1.0, "progress": False}
    with_lens = pipeline.generate(["a cat"], lens=str(lens_file), inspect=True, **how)
    without = pipeline.generate(["a cat"], **how)
    assert (with_lens.tokens != without.tokens).any()
    inspection = with_lens.inspections[0]
    assert (inspection.token == with_lens.tokens[0].numpy()).all()
    assert with_lens.records[0].settings["lens_digest"].startswith("sha256:")
    with pytest.raises(UserError, match=r"^lens: .*: no lens of layer 4; expected layer to be one"):
        pipeline.generate(["a cat"], lens=str(lens_file), **{**how, "layer": 4})
