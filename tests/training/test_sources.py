"""``lens`` on pictures with captions, and on answers: readouts of either head."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration

from lit_dola.janus.lens import LensFile
from lit_dola.janus.pixels import PixelProcessor
from lit_dola.janus.question import QuestionEncoder
from lit_dola.janus.tokenizer import PromptEncoder, unconditional_ids
from lit_dola.training.readouts import LitLens
from tests.support.commands import one_line
from tests.support.questions import answers, write_pictures, write_questions

pytestmark = pytest.mark.slow
LAYER = 3
CAPTIONS = [
    {"image": "a.png", "prompt": "a cat"},
    {"image": "b.png", "caption": "a dog"},
    {"image": "c.jpg", "text": "two blue birds on a branch"},
    {"image": "b.png", "prompt": "a house"},
]


@pytest.fixture
def train(main_here, tiny_checkpoint, tmp_path):
    def train(*args):
        return main_here(
            tmp_path, "lens", "--trainer.accelerator=cpu", "--trainer.devices=1",
            "--trainer.max_steps=24", "--trainer.val_check_interval=12", "--data.batch_size=2",
            "--model.warmup_steps=2", f"--model.layers=[{LAYER}]",
            f"--model.model_path={tiny_checkpoint}", *args,
        )  # fmt: skip

    return train


@pytest.fixture
def plain(tiny_checkpoint):
    """transformers' own Janus in float64."""
    return JanusForConditionalGeneration.from_pretrained(
        tiny_checkpoint, dtype=torch.float64, attn_implementation="eager"
    ).eval()


def divergences(plain, head, inputs, count, lens):
    """KL at the last positions of embeddings ``(length, hidden)``, by the lens, in float64."""
    language_model = plain.model.language_model
    readout = lens.readout(LAYER, torch.float64, torch.device("cpu"))
    with torch.no_grad():
        states = language_model(inputs_embeds=inputs[None], output_hidden_states=True).hidden_states
        final, mid = (states[index][0, -count:] for index in (-1, LAYER))
        read = head(language_model.norm(mid + readout(mid))).log_softmax(-1)
        final = head(final).log_softmax(-1)
    return F.kl_div(read, final, log_target=True, reduction="none").sum(-1)


def write_captions(folder, entries=CAPTIONS):
    write_pictures(folder)
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, entries)))


def plain_tokens(plain, path):
    """Tokens of a picture: cut to a square, each latent's code by the angle between them."""
    with Image.open(path) as image:
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        square = image.convert("RGB").resize(
            (16, 16), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
    pixels = torch.from_numpy(np.asarray(square).astype(np.float64) / 255 * 2 - 1)
    vq = plain.model.vqmodel
    with torch.no_grad():
        latents = vq.quant_conv(vq.encoder(pixels.permute(2, 0, 1)[None]))[0].flatten(1).T
        codes = vq.quantize.embedding.weight
        return torch.stack([F.cosine_similarity(codes, each[None]).argmax() for each in latents])


def test_captioned_pictures(train, plain, tiny_checkpoint, tmp_path):
    """Held out is the first caption by name; its only picture has the unconditional branch."""
    write_captions(tmp_path)
    done = train("--data.picture_json=captions.jsonl")
    assert done.returncode == 0, done.stderr
    lens = LensFile.open(tmp_path / "lens.safetensors")
    assert (lens.head, lens.training["sequences"], lens.training["held_out"]) == ("image", 3, 1)
    encoder = PromptEncoder(tiny_checkpoint)
    ids = unconditional_ids(encoder.encode("a cat"), encoder.pad_token_id)
    tokens = plain_tokens(plain, tmp_path / "a.png")
    text = plain.model.language_model.embed_tokens(torch.tensor(ids))
    drawn = plain.prepare_embeddings_for_image_generation(tokens[None, :-1])[0]
    inputs = torch.cat([text, drawn]).detach()
    expected = divergences(plain, plain.model.generation_head, inputs, 16, lens).mean()
    found = lens.training["kl"][str(LAYER)]
    assert found["lens"] == pytest.approx(float(expected), rel=1e-3)
    assert found["lens"] < 0.8 * found["norm"]


def test_answers(train, main_here, plain, tiny_checkpoint, tmp_path):
    """A lens of the text head, which ``answer`` reads the layer through."""
    write_questions(tmp_path)
    asked = [
        "answer", "--trainer.accelerator=cpu", f"--model.model_path={tiny_checkpoint}",
        "--data.question_json=questions.jsonl", "--model.max_new_tokens=8",
    ]  # fmt: skip
    system = "--model.system_prompt=Be brief."
    assert main_here(tmp_path, *asked, "--model.dola=false", system).returncode == 0
    run = next(path.parent for path in tmp_path.rglob("answers.jsonl"))
    done = train("--model.head=text", f"--data.runs=[{run}]")
    assert done.returncode == 0, done.stderr
    lens = LensFile.open(tmp_path / "lens.safetensors")
    assert lens.head == "text"
    encoder = QuestionEncoder(tiny_checkpoint, 16, system_prompt="Be brief.")
    processor = PixelProcessor.of(tiny_checkpoint)
    embed, found = plain.model.language_model.embed_tokens, []
    # Held out are the questions about a.png alone; every third one has the unconditional branch.
    held_out = [line for line in answers(run) if line["image"] == "a.png"]
    for place, line in enumerate(held_out):
        ids = torch.tensor(encoder.encode_question(line["question"]))
        pictured = ids == encoder.image_token_id
        inputs = embed(ids.masked_fill(pictured, encoder.pad_token_id)).detach()
        if place % 3:
            with Image.open(tmp_path / line["image"]) as image, torch.no_grad():
                pixels = processor(image.convert("RGB"))[None].double()
                seen = plain.model.vision_model(pixels).last_hidden_state
                inputs[pictured] = plain.model.aligner(seen)[0]
        tokens = torch.tensor(line["tokens"])
        inputs = torch.cat([inputs, embed(tokens[:-1]).detach()])
        found.append(divergences(plain, plain.lm_head, inputs, len(tokens), lens))
    # Batches of two sequences, weighted by their positions.
    expected = float(torch.cat(found).mean())
    assert lens.training["kl"][str(LAYER)]["lens"] == pytest.approx(expected, rel=1e-3)

    lensed = ("--model.lens=lens.safetensors", f"--model.layer={LAYER}", "--model.strength=0.9")
    done = main_here(tmp_path, *asked, *lensed, "--writer.output_dir=lensed")
    assert done.returncode == 0, done.stderr
    assert {line["settings"]["lens_digest"] for line in answers(tmp_path / "lensed")} == {
        lens.digest
    }
    drawing = ["predict", *asked[1:3], "--writer.output_dir=images"]
    done = main_here(tmp_path, *drawing, *lensed, '--data.prompts=["a cat"]')
    one_line(done, 1, "model.lens: lens.safetensors: a lens of the text head; expected one of the ")
    one_line(train(f"--data.runs=[{run}]"), 1, f"data.runs: {run}: no images; expected the folder")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [*CAPTIONS, "a cat"],
            "captions.jsonl: line 5: found a string; expected an object with im",
        ),
        ([{"prompt": "a cat"}], "line 1: no image among 'prompt'; expected the key image"),
        ([{"image": "a.png"}], "line 1: no prompt among "),
        ([{"image": ["a.png", "b.png"], "prompt": "a"}], "image is a list of 2; expected one path"),
        ([{"image": "d.png", "prompt": "a cat"}], "d.png: found nothing; expected an image file"),
        (CAPTIONS[:1], "data.picture_json: sequences of 1 prompt(s); expected several"),
    ],
)
def test_pictures_that_do_not_fit(entries, message, train, tmp_path):
    write_captions(tmp_path, entries)
    done = train("--data.picture_json=captions.jsonl")
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_pictures_show_no_answers(train, tmp_path):
    write_captions(tmp_path)
    done = train("--data.picture_json=captions.jsonl", "--model.head=text")
    one_line(done, 1, "data.picture_json: no answers; expected data.runs of answer")


def test_without_memory(train, tmp_path, monkeypatch):
    def allocate(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    write_captions(tmp_path)
    monkeypatch.setattr(LitLens, "training_step", allocate)
    done = train("--data.picture_json=captions.jsonl")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "out of memory with 2 sequence(s) of " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "lens.safetensors").exists()


def test_both_kinds_of_sequences_together(train, main_here, tiny_checkpoint, tmp_path):
    write_captions(tmp_path)
    done = main_here(
        tmp_path, "predict", "--trainer.accelerator=cpu", f"--model.model_path={tiny_checkpoint}",
        "--model.dola=false", "--model.parallel_size=2", "--writer.save_tokens=true",
        '--data.prompts=["a fish"]', "--writer.output_dir=own",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert train("--data.picture_json=captions.jsonl", "--data.runs=[own]").returncode == 0
    lens = LensFile.open(tmp_path / "lens.safetensors")
    assert lens.training["sequences"] + lens.training["held_out"] == len(CAPTIONS) + 2
