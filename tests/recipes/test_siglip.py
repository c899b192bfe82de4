"""The recipe of the small SigLIP: its command line, its loss, its checkpoint."""

import csv
import math

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModel, AutoProcessor

from recipes.shapes.data import ShapesDataModule
from recipes.shapes.scene import Group, Object, Scene
from recipes.shapes.siglip import SiglipTraining, fitting
from recipes.shapes.train import main
from tests.support.commands import ROOT

pytestmark = pytest.mark.slow

CONFIG = ROOT / "recipes/shapes/siglip.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["train.py"])
        main(
            [
                "fit", f"--config={CONFIG}", "--trainer.accelerator=cpu",
                "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
                "--trainer.log_every_n_steps=1", "--trainer.max_epochs=1",
                "--data.batch_size=4", "--data.steps_per_epoch=2",
            ]
        )  # fmt: skip
    return folder / "outputs/shapes"


def test_the_checkpoint_is_one_of_transformers(trained):
    rows = list(csv.DictReader(next(trained.glob("siglip-logs/*/metrics.csv")).open()))
    assert len(rows) == 2
    assert float(rows[0]["words"]) > 10
    folder = trained / "siglip"
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor(
        text=["A Red circle", "a red circle"], images=[Image.new("RGB", (80, 60))],
        padding="max_length", return_tensors="pt",
    )  # fmt: skip
    assert inputs["input_ids"].shape == (2, 32)
    assert inputs["input_ids"][0].tolist() == inputs["input_ids"][1].tolist()  # in lower case
    assert model(**inputs).logits_per_image.shape == (1, 2)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 6e6


def test_every_pair_is_a_question():
    """SigLIP's loss, pair by pair, in float64."""
    sizes = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]
    training = SiglipTraining(sizes["text_config"], sizes["vision_config"]).double().eval()
    (batch,) = ShapesDataModule(batch_size=5, steps_per_epoch=1).train_dataloader()
    batch = batch._replace(pixel_values=batch.pixel_values.double())
    with torch.no_grad():
        loss = training.losses(batch)["loss"].item()
        texts = training.tokenizer(batch.prompts, padding="max_length", return_tensors="pt")
        logits = training.siglip(
            input_ids=texts["input_ids"], pixel_values=batch.pixel_values
        ).logits_per_image.numpy()
    fit = fitting(batch.scenes, batch.objects).numpy()
    assert fit.diagonal().all()
    expected = np.where(fit, np.log1p(np.exp(-logits)), np.log1p(np.exp(logits))).sum() / 5
    assert loss == pytest.approx(expected, abs=1e-4)
    assert math.exp(training.siglip.logit_scale.item()) == pytest.approx(10)


def test_a_caption_may_fit_several_pictures():
    red = Object("circle", "red", 20, 20, 8)
    blue = Object("circle", "blue", 20, 20, 8)
    scenes = [
        Scene("single_object", (Group("circle"),)),
        Scene("colors", (Group("circle", color="red"),)),
    ]
    assert fitting(scenes, [[red], [blue]]).tolist() == [[True, True], [True, False]]
