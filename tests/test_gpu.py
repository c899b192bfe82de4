"""On a GPU: the compiled step and its CUDA graphs against the plain reference on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_dola.decoding import DecodingConfig, ImageKey, ImageTokenGenerator
from lit_dola.janus import load_janus
from tests.test_decoding import BATCH, PROMPTS, expected

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("layer", [None, 6])
def test_same_tokens_as_the_reference_in_float64(
    layer, compile, tiny_checkpoint, reference_model, encoder
):
    janus = load_janus(
        tiny_checkpoint, pad_token_id=encoder.pad_token_id, dtype=torch.float64, device="cuda"
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    generate = ImageTokenGenerator(
        janus, DecodingConfig(layer=layer), max_prompt_length=120, compile=compile
    )
    input_ids = [encoder.encode(PROMPTS[prompt]) for prompt, _ in BATCH]
    keys = [ImageKey(*key) for key in BATCH]
    made = [generate(input_ids, keys).tolist() for _ in range(3)]  # warm-up, recording, replay
    assert made == [expected(reference_model, encoder, layer=layer)] * 3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (1 if compile else 0)


def test_the_command_line(tiny_checkpoint, tmp_path):
    """With automatic batch size, bfloat16 and the compiled step: as configs/dola.yaml has it."""
    command = [
        sys.executable, str(Path(__file__).parents[1] / "main.py"), "predict",
        "--config", str(Path(__file__).parents[1] / "configs/dola.yaml"), "--trainer.devices=1",
        f"--model.model_path={tiny_checkpoint}", f"--writer.output_dir={tmp_path}",
        f"--data.prompt_json={Path(__file__).parents[1] / 'prompt.json'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/*.jpg"))) == 48
    records = [json.loads(line) for line in (tmp_path / "metadata.jsonl").open(encoding="utf-8")]
    assert {record["precision"] for record in records} == {"bf16-true"}
