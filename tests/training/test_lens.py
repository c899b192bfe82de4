"""``lens``: readouts of middle layers, trained on the tokens of runs."""

import json
import shutil
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration

from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.lens import LensFile
from lit_dola.janus.loading import load_janus
from lit_dola.janus.tokenizer import PromptEncoder, unconditional_ids
from lit_dola.training.readouts import LitLens, divergence
from tests.support import forked
from tests.support.commands import CPU, one_line, records
from tests.support.questions import write_pictures

pytestmark = pytest.mark.slow
PROMPTS = ["a cat", "a dog", "two blue birds on a branch above a green river", "a house", "a fish"]
TRAINED = [
    "--trainer.accelerator=cpu", "--trainer.max_steps=40", "--trainer.val_check_interval=20",
    "--model.layers=[2,6]", "--model.warmup_steps=2", "--data.batch_size=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tiny_checkpoint, tmp_path_factory):
    """A run of the random Janus that has kept its tokens."""
    folder = tmp_path_factory.mktemp("run")
    done = forked.run(
        folder,
        [
            "predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.cfg_weight=1",
            "--model.dola=false", "--model.parallel_size=4", "--writer.save_tokens=true",
            f"--data.prompts={json.dumps(PROMPTS)}", "--writer.output_dir=own",
        ],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "own"


@pytest.fixture
def train(main_here, tiny_checkpoint, run_folder, tmp_path):
    def train(*args):
        return main_here(
            tmp_path, "lens", *TRAINED, "--trainer.devices=1",
            f"--model.model_path={tiny_checkpoint}", f"--data.runs=[{run_folder}]", *args,
        )  # fmt: skip

    return train


def plain_divergences(checkpoint, run_folder, lens_file, layer):
    """KL of the held-out images by transformers alone, in float64: by the lens, and by the norm.

    Held out is the first prompt, and every third of its images has the unconditional branch.
    """
    model = JanusForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float64).eval()
    encoder = PromptEncoder(checkpoint)
    readout = lens_file.readout(layer, torch.float64, torch.device("cpu"))
    language_model, head = model.model.language_model, model.model.generation_head
    found = []
    held_out = [record for record in records(run_folder) if record["prompt"] == min(PROMPTS)]
    for place, record in enumerate(held_out):
        tokens = torch.from_numpy(
            np.load((run_folder / record["file_name"]).with_suffix(".npy"))
        ).long()
        ids = encoder.encode(record["prompt"])
        if place % 3 == 0:
            ids = unconditional_ids(ids, encoder.pad_token_id)
        image = model.prepare_embeddings_for_image_generation(tokens[None, :-1])
        text = language_model.embed_tokens(torch.tensor([ids]))
        with torch.no_grad():
            states = language_model(
                inputs_embeds=torch.cat([text, image], dim=1), output_hidden_states=True
            ).hidden_states
            final, mid = (states[index][0, -len(tokens) :] for index in (-1, layer))
            final = head(final).log_softmax(-1)
            for read in (mid + readout(mid), mid):
                read = head(language_model.norm(read)).log_softmax(-1)
                found.append(F.kl_div(read, final, log_target=True, reduction="none").sum(-1))
    return torch.stack(found).mean(dim=1).view(-1, 2).mean(dim=0).tolist()


def test_a_trained_lens_reads_better(train, tiny_checkpoint, run_folder, tmp_path):
    done = train()
    assert done.returncode == 0, done.stderr
    lens = LensFile.open(tmp_path / "lens.safetensors")
    assert (lens.layers, lens.head) == ((2, 6), "image")
    assert lens.weights == Checkpoint.open(str(tiny_checkpoint)).weights_digest
    kl = lens.training["kl"]
    for layer in ("2", "6"):
        assert kl[layer]["lens"] < 0.6 * kl[layer]["norm"] < kl[layer]["raw"]
        by_lens, by_norm = plain_divergences(tiny_checkpoint, run_folder, lens, int(layer))
        assert by_lens == pytest.approx(kl[layer]["lens"], rel=1e-3)
        assert by_norm == pytest.approx(kl[layer]["norm"], rel=1e-3)
    assert (lens.training["steps"], lens.training["sequences"], lens.training["held_out"]) == (
        40, 16, 4,
    )  # fmt: skip
    table = done.stdout.splitlines()
    assert table[0].split()[:4] == ["layer", "lens", "norm", "raw"]
    assert table[1].split() == ["2", *(f"{kl['2'][name]:.3f}" for name in ("lens", "norm", "raw"))]
    assert table[-1] == "lens.safetensors"
    assert "step 20, held out: layer 2 " in done.stderr


def test_no_weight_of_the_model_changes_and_the_file_is_the_same_again(train, tmp_path):
    assert train().returncode == 0
    first = (tmp_path / "lens.safetensors").read_bytes()
    assert train().returncode == 0
    assert (tmp_path / "lens.safetensors").read_bytes() == first
    assert train("--model.seed=1").returncode == 0
    assert (tmp_path / "lens.safetensors").read_bytes() != first


def test_pictures_alone_load_the_vq_encoder(train, tmp_path):
    write_pictures(tmp_path)
    entries = [{"image": "a.png", "prompt": prompt} for prompt in PROMPTS]
    (tmp_path / "captions.json").write_text(json.dumps(entries))
    for args, encodes in [([], False), (["--data.picture_json=captions.json"], True)]:
        with patch("lit_dola.training.frozen.load_janus", wraps=load_janus) as load:
            done = train("--trainer.max_steps=1", "--trainer.val_check_interval=1", *args)
        assert done.returncode == 0, done.stderr
        assert load.call_args.kwargs["encodes"] is encodes


def test_the_frozen_model_is_no_parameter():
    model = LitLens("somewhere")
    model._frozen.append(torch.nn.Linear(2, 2))
    assert [*model.parameters()] == []


def test_in_bfloat16(train, tmp_path):
    assert train("--trainer.precision=bf16-mixed").returncode == 0
    lens = LensFile.open(tmp_path / "lens.safetensors")
    for figures in lens.training["kl"].values():
        assert figures["lens"] < 0.6 * figures["norm"]
    one_line(train("--trainer.precision=bf16-true"), 1, "trainer.precision: bf16-true; expected 32")


@pytest.mark.distributed
def test_two_ranks(tiny_checkpoint, run_folder, tmp_path):
    args = ["lens", *TRAINED, "--trainer.devices=2", f"--model.model_path={tiny_checkpoint}",
            f"--data.runs=[{run_folder}]"]  # fmt: skip
    done = forked.run_ranks(tmp_path, 2, args)
    assert [each.returncode for each in done] == [0, 0], done
    lens = LensFile.open(tmp_path / "rank0/lens.safetensors")
    assert not (tmp_path / "rank1/lens.safetensors").exists()
    assert lens.training["batch_size"] == 8
    assert lens.training["kl"]["6"]["lens"] < 0.6 * lens.training["kl"]["6"]["norm"]


def test_it_ends_early_without_progress(train, tmp_path):
    assert train("--model.learning_rate=1e-9", "--patience=1").returncode == 0
    lens = LensFile.open(tmp_path / "lens.safetensors")
    assert lens.training["steps"] <= 40


def spoiled(kind, run_folder, folder):
    run = folder / "spoiled"
    if kind == "nothing":
        return run
    shutil.copytree(run_folder, run)
    tokens = sorted(run.rglob("*.npy"))
    if kind == "no tokens":
        tokens[-1].unlink()
    elif kind == "broken tokens":
        for path in tokens:
            path.write_bytes(b"no tokens")
    elif kind == "other length":
        for path in tokens:
            np.save(path, np.zeros(9, dtype=np.int32))
    elif kind == "other checkpoint":
        log = run / "metadata.jsonl"
        log.write_text(log.read_text().replace('"checkpoint": "sha256:', '"checkpoint": "sha256:0'))
    return run


SPOILED = {
    "nothing": "no images; expected the folder of a run with images",
    "no tokens": "not found; expected a run with --writer.save_tokens true",
    "broken tokens": ".npy: not readable as tokens: ",
    "other length": ".npy: tokens of shape (9,); expected (16,)",
    "other checkpoint": "images of another checkpoint; expected those of ",
}


@pytest.mark.parametrize("kind", SPOILED)
def test_runs_that_do_not_fit(kind, train, run_folder, tmp_path):
    done = train(f"--data.runs=[{spoiled(kind, run_folder, tmp_path)}]")
    assert done.returncode == 1
    assert SPOILED[kind] in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "lens.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.layers=[8]"], "model.layers: 8 is not a middle layer of "),
        (["--data.runs=[]"], "data.runs: empty; expected folders of runs"),
        (["--output=/proc/nothing/lens"], "output: cannot write to "),
    ],
)
def test_settings_that_do_not_fit(args, message, train):
    done = train(*args)
    assert done.returncode == 1
    assert message in done.stderr


def test_divergence():
    final, mid = torch.randn(2, 3, 50).log_softmax(-1)
    expected = F.kl_div(mid, final, log_target=True, reduction="batchmean")
    assert divergence(final, mid) == pytest.approx(float(expected), rel=1e-5)
