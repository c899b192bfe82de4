"""The checkpoint that ships: what its model card and the README say of it."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import JanusForConditionalGeneration

from recipes.shapes.render import render
from recipes.shapes.scene import place_objects, sample_scene
from recipes.shapes.scorer import find_objects, is_right

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints" / "shapes-janus"


def test_its_size():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 16e6
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] >= 8


def test_pictures_survive_the_vq_tokenizer():
    vq = JanusForConditionalGeneration.from_pretrained(CHECKPOINT).model.vqmodel.float().eval()
    right = []
    for place in range(60):
        rng = random.Random(f"round trip {place}")
        scene = sample_scene(rng)
        pixels = np.asarray(render(place_objects(scene, rng), rng), dtype=np.float32)
        with torch.no_grad():
            latents = vq.encoder(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None])
            quantized, _, _ = vq.quantize(vq.quant_conv(latents))
            decoded = vq.decoder(vq.post_quant_conv(quantized))[0].permute(1, 2, 0)
        image = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        right.append(is_right(scene, find_objects(Image.fromarray(image))))
    assert np.mean(right) >= 0.95


def test_it_draws_what_held_out_prompts_say(tmp_path, main_here):
    """The bars of the project: 70 % of single objects, 40 % of all, without DoLa."""
    config = yaml.safe_load((ROOT / "configs/evaluate.yaml").read_text())
    lines = (ROOT / config["data"]["prompt_json"]).read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[::4]))
    config["model"] |= {"model_path": str(CHECKPOINT), "parallel_size": 1}
    config["data"]["prompt_json"] = "prompts.jsonl"
    config["trainer"]["accelerator"] = "cpu"
    config["settings"] = {"baseline": {"dola": False}}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(config))
    done = main_here(tmp_path, "evaluate", "--config=evaluate.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    rates = json.loads((tmp_path / "outputs/evaluate/report.json").read_text())["rates"]
    assert rates["baseline"]["single_object"]["mean"] >= 0.7
    assert rates["baseline"]["overall"]["mean"] >= 0.4


@pytest.mark.parametrize("document", ["README.md", "checkpoints/shapes-janus/README.md"])
def test_the_number_of_parameters_is_true(document):
    model = JanusForConditionalGeneration.from_pretrained(CHECKPOINT)
    (millions,) = re.findall(r"([\d.]+)M\s+parameters, trained", (ROOT / document).read_text())
    assert float(millions) == round(model.num_parameters() / 1e6, 1)
