"""On a GPU: the compiled step and its CUDA graphs against the plain reference on the CPU."""

import json
import subprocess
import sys

import pytest
import torch

from lit_dola.data.requests import ImageKey
from tests.support.commands import ROOT
from tests.support.images import BATCH, PROMPTS, ImageGenerator, expected, load_folder

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
    keys = [ImageKey(*key) for key in BATCH]
    made = [generate(input_ids, keys).tolist() for _ in range(3)]  # warm-up, recording, replay
    assert made == [expected(reference_model, encoder, layer=layer)] * 3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (1 if compile else 0)


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
    assert "out of memory: from now on at most" in split.stderr
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
