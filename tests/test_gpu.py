"""On a GPU: the compiled step and its CUDA graphs against the plain reference on the CPU."""

import json
import subprocess
import sys
from typing import get_args

import pytest
import torch

from lit_dola.data.requests import RequestKey
from lit_dola.decoding.loop import cfg_pair
from lit_dola.decoding.pool import PooledGenerator
from lit_dola.janus.quantization import Quantization
from lit_dola.janus.tokenizer import PromptEncoder
from tests.support.commands import ROOT
from tests.support.images import BATCH, PROMPTS, ImageGenerator, expected, load_folder
from tests.support.scoring import make_scoring

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("layer", [None, 6])
def test_same_tokens_as_the_reference_in_float64(
    layer, compile, tiny_checkpoint, reference_model, encoder
):
    janus = load_folder(
        tiny_checkpoint, pad_token_id=encoder.pad_token_id, dtype=torch.float64, device="cuda"
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    generate = ImageGenerator(janus, layer=layer, max_prompt_length=120, compile=compile)
    input_ids = [encoder.encode(PROMPTS[prompt]) for prompt, _ in BATCH]
    keys = [RequestKey(*key) for key in BATCH]
    made = [generate(input_ids, keys).tolist() for _ in range(3)]  # warm-up, recording, replay
    assert made == [expected(reference_model, encoder, layer=layer)] * 3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (1 if compile else 0)


@pytest.mark.parametrize("compile", [False, True])
def test_speculative_decoding_draws_the_same_tokens(
    compile, tiny_checkpoint, reference_model, encoder
):
    janus = load_folder(
        tiny_checkpoint, pad_token_id=encoder.pad_token_id, dtype=torch.float64, device="cuda"
    )
    generate = PooledGenerator(
        janus,
        janus.image_head,
        make_scoring(),
        layer=6,
        max_new_tokens=16,
        window=4,
        compile=compile,
    )
    branches = [
        cfg_pair(encoder.encode(PROMPTS[prompt]), janus.pad_token_id) for prompt, _ in BATCH
    ]
    made = [generate(branches, BATCH).tolist() for _ in range(3)]
    assert made == [expected(reference_model, encoder, layer=6)] * 3


@pytest.mark.parametrize("compile", [False, True])
def test_in_bfloat16_an_image_does_not_depend_on_its_company(compile):
    """With the trained small Janus, whose images are no noise; five of eight rows are copies."""
    folder = ROOT / "checkpoints/shapes-janus"
    encoder = PromptEncoder(folder)
    janus = load_folder(
        folder, pad_token_id=encoder.pad_token_id, dtype=torch.bfloat16, device="cuda"
    )
    generate = ImageGenerator(janus, layer=8, compile=compile, fill_to=8)
    prompts = ["a red circle", "two blue squares " * 9, "a cross"]
    ids = [encoder.encode(prompt) for prompt in prompts]
    together = generate([ids[0]] * 4 + [ids[1]] * 4, [RequestKey(n // 4, n) for n in range(8)])
    apart = generate(
        [ids[2], ids[0], ids[0]], [RequestKey(2, 0), RequestKey(0, 1), RequestKey(0, 3)]
    )
    assert torch.equal(apart[1:], together[[1, 3]])


@pytest.mark.parametrize("how", get_args(Quantization))
def test_quantized_weights(how, tiny_checkpoint, encoder):
    pytest.importorskip("torchao")
    settings = {
        "pad_token_id": encoder.pad_token_id, "dtype": torch.bfloat16, "device": "cuda",
    }  # fmt: skip
    plain, janus = (load_folder(tiny_checkpoint, quantize=q, **settings) for q in (None, how))
    layers = [model.language_model.layers[0].mlp.up_proj for model in (plain, janus)]
    states = torch.randn(4, layers[0].in_features, dtype=torch.bfloat16, device="cuda")
    outputs = [layer(states).float() for layer in layers]
    assert 0 < (outputs[0] - outputs[1]).norm() / outputs[0].norm() < 0.15
    for compile in False, True:
        tokens = ImageGenerator(janus, layer=6, compile=compile)([[0, 5, 4]], [RequestKey(0, 0)])
        assert tokens.shape == (1, 16)


def test_the_command_line(tiny_checkpoint, tmp_path):
    """With automatic batch size, bfloat16 and the compiled step, as in configs/dola.yaml."""
    command = [
        sys.executable, str(ROOT / "main.py"), "predict",
        "--config", str(ROOT / "configs/dola.yaml"), "--trainer.devices=1",
        f"--model.model_path={tiny_checkpoint}", f"--writer.output_dir={tmp_path}",
        f"--data.prompt_json={ROOT / 'prompt.json'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/*.jpg"))) == 48
    records = [json.loads(line) for line in (tmp_path / "metadata.jsonl").open(encoding="utf-8")]
    assert {record["precision"] for record in records} == {"bf16-true"}


def test_out_of_memory_splits_the_batch(tiny_checkpoint, tmp_path):
    """With only a little memory left: the same images, and a warning."""
    prompts = tmp_path / "prompt.json"
    prompts.write_text(json.dumps([f"{n} cats" for n in range(256)]))
    command = [
        "predict", "--trainer.accelerator=gpu", "--trainer.devices=1",
        "--trainer.precision=64-true",
        f"--model.model_path={tiny_checkpoint}", f"--data.prompt_json={prompts}",
        "--model.parallel_size=2", "--model.images_per_batch=512", "--model.compile=false",
        "--writer.save_tokens=true",
    ]  # fmt: skip
    whole, split = (
        subprocess.run(
            [sys.executable, "-c", SCRIPT, mebibytes, *command, f"--writer.output_dir={folder}"],
            capture_output=True, text=True, timeout=600, cwd=ROOT,
        )
        for mebibytes, folder in [("0", tmp_path / "whole"), ("300", tmp_path / "split")]
    )  # fmt: skip
    assert (whole.returncode, whole.stderr) == (0, "")
    assert split.returncode == 0, split.stderr
    assert "out of memory: continuing with at most" in split.stderr
    tokens = [
        {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/*.npy")}
        for folder in (tmp_path / "whole", tmp_path / "split")
    ]
    assert len(tokens[0]) == 512
    assert tokens[0] == tokens[1]


SCRIPT = """
import sys, torch
from lit_dola.cli import main
most = int(sys.argv.pop(1)) * 2**20
if most:
    memory = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(most / memory)
main()
"""
