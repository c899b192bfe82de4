"""Scorers of images, with random models of the very classes, against plain computations."""

import math
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lit_dola.errors import UserError
from lit_dola.evaluation.scorers import (
    QUESTION,
    ClipIqa,
    ClipScore,
    Pyiqa,
    SiglipScore,
    SoftTifa,
    questions_of,
)
from tests.support import reference
from tests.support.commands import ROOT

RED = Image.new("RGB", (48, 48), (220, 30, 30))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A random CLIP in transformers' layout, with the tokenizer of the small Janus."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    words = ["<s>", "</s>", "<unk>", "a", "red", "circle", "good", "bad", "photo", "."]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        unk_token="<unk>", model_max_length=16,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, "vocab_size": 10, "max_position_embeddings": 16, "eos_token_id": 1},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return str(folder)


def cosine(folder, image, text):
    """By transformers alone."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    with torch.no_grad():
        output = model(input_ids=ids["input_ids"], pixel_values=pixels["pixel_values"])
    return float(output.image_embeds[0] @ output.text_embeds[0])


def test_a_prompt_that_is_cut_is_noted(clip, caplog):
    scorer = ClipScore(clip)
    assert scorer(RED, {"prompt": "a red circle"}) >= 0
    assert "the text tower reads" not in caplog.text
    for end in ("red", "blue"):
        scorer(RED, {"prompt": "a circle and " * 40 + end})
    assert caplog.text.count("the text tower reads") == 1


@pytest.mark.parametrize("image", [RED, NOISE], ids=["red", "noise"])
def test_clip_score_is_the_cosine(image, clip):
    expected = max(0.0, cosine(clip, image, "a red circle"))
    assert ClipScore(clip)(image, {"prompt": "a red circle"}) == pytest.approx(expected, abs=2e-4)


@pytest.mark.skipif(
    int(version("transformers").split(".")[0]) > 4,
    reason="torchmetrics 1.9 fails on transformers 5",
)
def test_clip_score_is_that_of_torchmetrics(clip):
    from torchmetrics.multimodal import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    metric = CLIPScore(
        lambda: (CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip))
    )
    pixels = torch.from_numpy(np.array(NOISE)).permute(2, 0, 1)
    for text in ("a red circle", "a bad photo ."):
        expected = float(metric(pixels, text)) / 100
        assert ClipScore(clip)(NOISE, {"prompt": text}) == pytest.approx(expected, abs=1e-4)


def test_a_long_prompt_is_cut(clip):
    assert 0 <= ClipScore(clip)(RED, {"prompt": "a red circle " * 50}) <= 1


@pytest.mark.parametrize("image", [RED, NOISE], ids=["red", "noise"])
def test_clip_iqa_is_the_probability_of_the_better_text(image, clip):
    good, bad = (math.exp(100 * cosine(clip, image, f"{word} photo.")) for word in ("Good", "Bad"))
    expected = good / (good + bad)
    assert ClipIqa(clip)(image, {"prompt": "x"}) == pytest.approx(expected, abs=1e-3)


def test_siglip_s_probability_of_a_match():
    scorer = SiglipScore(str(ROOT / "checkpoints/shapes-siglip"))
    right, wrong = (
        scorer(RED, {"prompt": prompt}) for prompt in ("a red image", "three blue crosses")
    )
    assert 0 <= wrong < 1
    assert 0 <= right < 1
    model, processor = scorer.siglip.model, scorer.siglip.processor
    inputs = processor(
        text=["a red image"], images=RED, padding="max_length", return_tensors="pt",
        max_length=scorer.siglip.text_length,
    )  # fmt: skip
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.sigmoid().item()
    assert right == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_soft_tifa_is_the_mean_probability_of_the_right_answers(
    mean, tiny_checkpoint, reference_model
):
    """Against the plain float64 model, run question by question."""
    scorer = SoftTifa(str(tiny_checkpoint), mean)
    encoder, pixels = scorer.judge.encoder, scorer.judge.pixels
    pairs = [["How many birds are there?", "two"], ["Is it red?", "Yes"]]
    accepted = [["two", "Two", "2"], ["Yes", "yes"]]
    spaces = set(encoder.encode_text(" "))
    probabilities = []
    for (question, _), words in zip(pairs, accepted):
        ids = encoder.encode_question(question)
        inputs = reference.both_branches(
            reference_model, ids, [pixels(NOISE).double()], encoder.image_token_id,
            encoder.pad_token_id,
        )[:1]  # fmt: skip
        states = reference_model.hidden_states(inputs)[-1][0, -1]
        found = torch.softmax(reference_model.lm_head(states).detach(), dim=-1)
        texts = [text for word in words for text in (word, f" {word}")]
        first = {encoder.encode_text(text)[0] for text in texts} - spaces
        probabilities.append(sum(float(found[token]) for token in first))
    expected = {"geometric": math.prod(probabilities) ** 0.5, "arithmetic": sum(probabilities) / 2}
    found = scorer(NOISE, {"prompt": "x", "vqa_list": pairs})
    assert found == pytest.approx(expected[mean], rel=1e-4)
    assert "not independent" in scorer.note


def test_what_is_asked():
    assert questions_of({"prompt": "a red circle."}, QUESTION) == [
        ("Does this image show a red circle?", "yes")
    ]
    assert questions_of({"prompt": "a", "vqa_list": [["Q?", "four"]]}, "") == [("Q?", "four")]
    with pytest.raises(UserError, match="vqa_list is 'x'; expected pairs of a question and its"):
        questions_of({"prompt": "a", "vqa_list": "x"}, QUESTION)


def test_pyiqa(monkeypatch):
    """Its interface: a metric by name, on a device, of pixels between 0 and 1."""
    made = []

    def create_metric(name, device):
        made.append((name, device.type))
        return lambda pixels: pixels.mean()[None] * 80

    spec = ModuleSpec("pyiqa", None)
    monkeypatch.setitem(
        sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric, __spec__=spec)
    )
    scorer = Pyiqa("musiq")
    white = scorer(Image.new("RGB", (9, 7), "white"), {})
    assert (white, made) == (pytest.approx(0.8), [("musiq", "cpu")])
    assert scorer(RED, {}) < white
    assert len(made) == 1
    assert scorer.quantity == "musiq, times 1"
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(UserError, match=r'pyiqa is not installed; pip install -e "\.\[pyiqa\]"'):
        Pyiqa()(RED, {})


def test_a_model_that_is_not_there(tmp_path):
    for scorer in (ClipScore(str(tmp_path)), ClipIqa(str(tmp_path))):
        with pytest.raises(UserError, match=f"scorer: {tmp_path}: cannot be loaded: "):
            scorer(RED, {"prompt": "a"})
