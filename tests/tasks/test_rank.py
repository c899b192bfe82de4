"""Rankings, against plain computations from transformers' modules and a plain float64 loop."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from lit_dola.janus.pixels import PixelProcessor
from lit_dola.janus.question import QuestionEncoder
from tests.support import reference
from tests.support.images import slow
from tests.support.siglips import LABELS, LENGTH, make_siglip, make_siglip2, write_items


@pytest.fixture(scope="module", params=["siglip", *slow(["siglip2"])])
def siglip(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip") / "model"
    {"siglip": make_siglip, "siglip2": make_siglip2}[request.param](folder)
    return folder


@pytest.fixture
def rank(main_here, tmp_path):
    """Run ``rank`` in float64 and return its lines."""

    def run(checkpoint, *args, items=None, out="out"):
        write_items(tmp_path, items)
        done = main_here(
            tmp_path, "rank", "--trainer.accelerator=cpu", "--trainer.precision=64-true",
            "--trainer.enable_progress_bar=false", f"--model.model_path={checkpoint}",
            "--data.item_json=items.jsonl", f"--writer.output_dir={out}", *args,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in (tmp_path / out / "ranks.jsonl").open()]

    return run


@torch.no_grad()
def plain_logits(folder, picture, labels, layer):
    """Final and middle logits over labels, from transformers' modules in float64."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    processor = AutoProcessor.from_pretrained(folder)
    texts = [label.lower() for label in labels]
    inputs = processor.tokenizer(
        texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    inputs = {"input_ids": inputs["input_ids"]}
    with Image.open(picture) as image:  # the processor as a whole knows SigLIP 2 of one size alone
        inputs |= processor.image_processor(image.convert("RGB"), return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].double()
    final = model(**inputs).logits_per_image[0]
    tower = model.vision_model
    names = ("pixel_values", "spatial_shapes", "pixel_attention_mask")
    pixels = {name: inputs[name] for name in names if name in inputs}
    states = []
    hook = tower.encoder.layers[layer - 1].register_forward_hook(
        lambda _layer, _inputs, output: states.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    model.get_image_features(**pixels)
    hook.remove()
    state = tower.post_layernorm(states[0])
    if "pixel_attention_mask" in pixels:  # padding is last, and the head attends to none of it
        state = state[:, pixels["pixel_attention_mask"][0].bool()]
    pooled = tower.head(state)
    text = model.text_model(inputs["input_ids"]).pooler_output
    text = text / text.norm(dim=-1, keepdim=True)
    pooled = pooled / pooled.norm(dim=-1, keepdim=True)
    mid = (pooled @ text.T)[0] * model.logit_scale.exp() + model.logit_bias
    return final.numpy(), mid.numpy()


def close(found, expected):
    """Whether scores agree; None stands for -inf."""
    found = [-math.inf if score is None else score for score in found]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_without_dola_scores_are_the_models_own(rank, siglip, tmp_path):
    lines = rank(siglip, "--model.dola=false")
    assert len(lines) == 3
    for line in lines:
        final, _ = plain_logits(siglip, tmp_path / line["image"], line["labels"], 2)
        close(line["scores"], final)
        assert line["order"] == np.argsort(-final, kind="stable").tolist()
        assert line["settings"]["scorer"] == "siglip"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "alpha", "strength"), [(3, 0.1, 1.0), (2, 0.001, 0.4), (1, 0, 1.0)]
)
def test_dola_contrasts_the_candidates(rank, siglip, tmp_path, layer, alpha, strength):
    lines = rank(
        siglip, f"--model.layer={layer}", f"--model.alpha={alpha}", f"--model.strength={strength}"
    )
    for line in lines:
        final, mid = plain_logits(siglip, tmp_path / line["image"], line["labels"], layer)
        inside = reference.head_set(final, alpha)
        expected = np.where(inside, reference.contrast(final, mid, strength), -np.inf)
        close(line["scores"], expected)
        assert line["order"] == np.argsort(-expected, kind="stable").tolist()
        assert line["settings"]["layer"] == layer


@pytest.mark.slow
def test_labels_of_one_of_a_thousand_and_equal_ones(rank, siglip):
    many = [f"a picture of {number} circles" for number in range(1000)]
    items = [("a.png", ["a cat"]), ("a.png", many), ("b.png", ["a dog", "a cat", "a dog"])]
    one, thousand, equal = rank(siglip, "--model.alpha=0", items=items)
    assert one["scores"] == [0.0]
    assert one["order"] == [0]
    assert len(thousand["scores"]) == len(set(thousand["order"])) == 1000
    assert equal["scores"][0] == equal["scores"][2]
    assert equal["order"].index(0) < equal["order"].index(2)


def test_one_list_of_labels_for_all(rank, siglip, tmp_path):
    write_items(tmp_path)
    (tmp_path / "items.json").write_text(json.dumps([{"image": "a.png"}, {"image": "b.png"}]))
    labels = json.dumps(LABELS[:2])
    lines = rank(siglip, "--data.item_json=items.json", f"--data.labels={labels}")
    assert [line["labels"] for line in lines] == [LABELS[:2]] * 2
    assert all(len(line["scores"]) == 2 for line in lines)


JANUS = [
    {"dola": False},
    {"layer": 6, "alpha": 0.001},
    {"layer": 3, "alpha": 0, "strength": 0.3, "mid_norm": True},
]


def flags(settings):
    return [f"--model.{name}={json.dumps(value)}" for name, value in settings.items()]


@pytest.fixture
def question_inputs(reference_model, tiny_checkpoint, tmp_path):
    """Inputs of a question about a picture, in both branches."""
    encoder = QuestionEncoder(tiny_checkpoint, 16)
    pixels = PixelProcessor.of(tiny_checkpoint)

    def inputs(image, question):
        with Image.open(tmp_path / image) as picture:
            pictures = [pixels(picture.convert("RGB")).double()]
        ids = encoder.encode_question(question)
        with torch.no_grad():
            return reference.both_branches(
                reference_model, ids, pictures, encoder.image_token_id, encoder.pad_token_id
            )

    return encoder, inputs


@pytest.mark.parametrize("settings", slow(JANUS), ids=str)
def test_likelihood_is_the_mean_log_probability(
    rank, reference_model, tiny_checkpoint, question_inputs, settings
):
    encoder, inputs = question_inputs
    lines = rank(tiny_checkpoint, "--model.scorer=likelihood", *flags(settings))
    contrast = {"layer": None, **settings}
    contrast.pop("dola", None)
    for line in lines[:2]:
        both = inputs(line["image"], "What is in the image?")
        expected = []
        for label in line["labels"]:
            ids = encoder.encode_text(f" {label}")
            seen, blind = reference.text_log_probs(reference_model, both, ids, **contrast)
            expected.append(seen.mean() - blind.mean() if np.isfinite(seen).all() else -np.inf)
        close(line["scores"], expected)
    assert len({tuple(line["order"]) for line in lines}) > 1


@pytest.mark.parametrize("settings", slow(JANUS), ids=str)
def test_yes_no_is_the_share_of_yes(
    rank, reference_model, tiny_checkpoint, question_inputs, settings
):
    encoder, inputs = question_inputs
    lines = rank(tiny_checkpoint, "--model.scorer=yes_no", *flags({"alpha": 0, **settings}))
    contrast = {"layer": None, "alpha": 0, **settings}
    contrast.pop("dola", None)
    yes, no = (
        {encoder.encode_text(word)[0] for word in words} - set(encoder.encode_text(" "))
        for words in (("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No"))
    )
    for line in lines[:2]:
        expected = []
        for label in line["labels"]:
            seen = inputs(line["image"], f"Does this image show {label}?")[:1]
            p_yes, p_no = (
                sum(
                    np.exp(
                        reference.text_log_probs(reference_model, seen, [token], **contrast)
                    ).item()
                    for token in tokens
                )
                for tokens in (yes, no)
            )
            expected.append(p_yes / (p_yes + p_no) if p_yes + p_no else -np.inf)
        close(line["scores"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 7])
def test_how_many_texts_run_together_does_not_matter(rank, tiny_checkpoint, size):
    base = ("--model.scorer=likelihood", "--model.dola=false")
    one = rank(tiny_checkpoint, *base, out="one")
    some = rank(tiny_checkpoint, *base, f"--model.texts_at_once={size}", out="some")
    for line, other in zip(one, some, strict=True):
        np.testing.assert_allclose(line["scores"], other["scores"], atol=1e-6)


@pytest.mark.slow
def test_the_best_image_of_each_prompt(rank, siglip, main_here, tmp_path, tiny_checkpoint):
    (tmp_path / "p.txt").write_text("a red circle\ntwo blue squares")
    done = main_here(
        tmp_path, "predict", "--trainer.accelerator=cpu", f"--model.model_path={tiny_checkpoint}",
        "--data.prompt_json=p.txt", "--model.parallel_size=3", "--writer.output_dir=run",
        "--writer.format=png", "--trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Best alone" not in (tmp_path / "run/index.html").read_text()
    lines = rank(siglip, "--data.run=run", "--model.dola=false", out="ranks")
    best = json.loads((tmp_path / "run/best.json").read_text())
    page = (tmp_path / "run/index.html").read_text()
    assert "Best alone" in page
    for line, prompt in zip(lines, ("a red circle", "two blue squares"), strict=True):
        assert line["labels"] == [prompt]
        final = [
            plain_logits(siglip, tmp_path / "run" / file, [prompt], 2)[0][0]
            for file in line["image"]
        ]
        close(line["scores"], final)
        winner = line["image"][int(np.argmax(final))]
        told = best["prompts"][str(line["prompt_index"])]
        assert told["best"] == winner
        close([told["scores"][file] for file in line["image"]], final)
        assert f'<li class="best"><a href="{winner}"' in page
    assert page.count('class="best"') == 2
    dola = rank(siglip, "--data.run=run", "--model.alpha=0.5", out="dola")
    assert all(None not in line["scores"] or line["scores"].count(None) < 3 for line in dola)
