"""Answers, against a plain float64 loop and transformers' own ``generate``."""

import json
import math
from itertools import zip_longest

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import JanusForConditionalGeneration, JanusProcessor

from lit_dola.janus.pixels import PixelProcessor
from lit_dola.janus.question import SYSTEM_PROMPT, QuestionEncoder
from tests.support import reference
from tests.support.images import slow
from tests.support.questions import QUESTIONS, answers, newest_processor, write_questions

TOKENS = 8


@pytest.fixture
def answer(main_here, tmp_path, tiny_checkpoint):
    """Run ``answer`` in float64 on the questions and return its lines."""

    def run(*args, out="out", questions=QUESTIONS):
        write_questions(tmp_path, questions)
        done = main_here(
            tmp_path, "answer", "--trainer.accelerator=cpu", "--trainer.precision=64-true",
            "--trainer.enable_progress_bar=false", f"--model.model_path={tiny_checkpoint}",
            "--data.question_json=questions.jsonl", f"--writer.output_dir={out}",
            f"--model.max_new_tokens={TOKENS}", *args,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return answers(tmp_path / out)

    return run


@pytest.fixture
def expected(reference_model, tiny_checkpoint, tmp_path):
    """What the plain reference answers."""
    encoder = QuestionEncoder(tiny_checkpoint, 16)
    pixels = PixelProcessor.of(tiny_checkpoint)

    def see(name):
        with Image.open(tmp_path / name) as image:
            return pixels(image.convert("RGB")).double()

    def run(questions=QUESTIONS, guesses=(), **settings):
        rows = []
        guessed = zip_longest(questions, guesses, fillvalue=())
        for index, ((image, question), guess) in enumerate(guessed):
            names = image if isinstance(image, list) else [image]
            rows.append(
                reference.answer(
                    reference_model,
                    encoder.encode_question(question, len(names)),
                    [see(name) for name in names],
                    image_token_id=encoder.image_token_id,
                    pad_token_id=encoder.pad_token_id,
                    eos_token_id=encoder.eos_token_id,
                    max_new_tokens=TOKENS,
                    question_index=index,
                    guess=guess,
                    **settings,
                )
            )
        return rows

    return run


SETTINGS = [
    {"dola": False},
    {"layer": 6},
    {"layer": 3, "alpha": 0.02, "strength": 0.4, "mid_norm": True},
    {"layer": 6, "cfg_weight": 2.5},
    {"dola": False, "cfg_weight": 3.0, "temperature": 1.0, "seed": 3},
    {"layer": 5, "temperature": 0.8, "top_k": 40, "seed": 1},
    {"layer": 6, "cfg_weight": 1.5, "apc": "union", "temperature": 1.0, "alpha": 0.3},
]


def flags(settings):
    texts = {
        name: value if name == "apc" else json.dumps(value) for name, value in settings.items()
    }
    return [f"--model.{name}={text}" for name, text in texts.items()]


def for_reference(settings):
    return {name: value for name, value in settings.items() if name != "dola"}


@pytest.mark.parametrize("settings", slow(SETTINGS), ids=str)
def test_tokens_equal_the_reference(answer, expected, settings):
    found = [line["tokens"] for line in answer(*flags(settings))]
    assert found == expected(guesses=found, **for_reference(settings))
    assert len({*map(tuple, found)}) > 4


@pytest.mark.parametrize(
    "settings", slow([{"layer": 6, "alpha": 0}, {"alpha": 0, "layer": 3, "cfg_weight": 2.5}])
)
def test_a_prior_is_added_to_the_scores(answer, expected, tiny_checkpoint, tmp_path, settings):
    prior = {" apple": 9.0, " red": 11.0, " branch": -3.0}
    (tmp_path / "prior.json").write_text(json.dumps(prior))
    encoder = QuestionEncoder(tiny_checkpoint, 16)
    bias = np.zeros(512)
    for text, value in prior.items():
        bias[encoder.encode_text(text)[0]] = 0.5 * value
    bias = bias[
        : json.loads((tiny_checkpoint / "config.json").read_text())["text_config"]["vocab_size"]
    ]
    lines = answer(*flags(settings), "--model.prior=prior.json", "--model.prior_weight=0.5")
    made = [line["tokens"] for line in lines]
    assert made == expected(guesses=made, **for_reference(settings), bias=bias)
    assert made[:2] != expected(QUESTIONS[:2], **for_reference(settings))
    assert lines[0]["settings"]["prior"].startswith("prior.json sha256:")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[3], SETTINGS[5]], ids=str)
def test_log_probabilities_are_the_references(answer, expected, settings):
    theirs, lines = [], answer(*flags(settings), "--writer.logprobs=true")
    found = [line["tokens"] for line in lines]
    expected(guesses=found, logprobs=theirs, **for_reference(settings))
    for kind, name in enumerate(("logprobs", "sampled_logprobs")):
        ours = [value for line in lines for value in line[name]]
        np.testing.assert_allclose(ours, [it[kind] for it in theirs], rtol=1e-5, atol=1e-5)
    assert [len(line["logprobs"]) for line in lines] == [*map(len, found)]
    assert "logprobs" not in answer(*flags(settings), out="without")[0]
    assert answer(*flags(settings), "--writer.logprobs=true", out="without") == lines


@pytest.mark.slow
def test_guidance_adds_the_evidence_of_the_picture(answer, expected):
    """At 1 it is none; the pictures matter, and so does the weight."""
    lines = answer("--model.dola=false", "--model.cfg_weight=1")
    one = [line["tokens"] for line in lines]
    assert one == expected(guesses=one, layer=None)
    assert one == expected(guesses=one, layer=None, cfg_weight=1.0000001)
    assert one[:2] != expected(QUESTIONS[:2], layer=None, cfg_weight=4.0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, *slow([1, 7])])
def test_batches_do_not_matter(answer, size):
    one = answer("--model.questions_per_batch=1", out="one")
    some = answer(f"--model.questions_per_batch={size}", out="some")
    assert [line["tokens"] for line in some] == [line["tokens"] for line in one]
    assert [line["answer"] for line in some] == [line["answer"] for line in one]


@newest_processor
@pytest.mark.parametrize("question", [3, *slow([0, 1])])
def test_tokens_of_transformers_generate(answer, tiny_checkpoint, tmp_path, question):
    """Its processor, its pixels, its loop."""
    image, text = QUESTIONS[question]
    lines = answer("--model.dola=false", "--model.preprocess=transformers")
    model = JanusForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float64)
    processor = JanusProcessor.from_pretrained(tiny_checkpoint)
    pictures = [
        Image.open(tmp_path / name) for name in (image if isinstance(image, list) else [image])
    ]
    content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(
        text=prompt, images=pictures, use_default_system_prompt=True, return_tensors="pt"
    )
    made = model.generate(
        **inputs, generation_mode="text", do_sample=False, max_new_tokens=TOKENS,
    )  # fmt: skip
    assert lines[question]["tokens"] == made[0, inputs.input_ids.shape[1] :].tolist()


def test_an_answer_ends_with_the_end_of_the_sentence(answer, tiny_checkpoint, tmp_path):
    """A prior on the end makes every answer stop at once; its text is empty."""
    (tmp_path / "end.json").write_text(json.dumps({"<｜end▁of▁sentence｜>": 1000}))
    lines = answer("--model.prior=end.json", "--model.alpha=0")
    encoder = QuestionEncoder(tiny_checkpoint, 16)
    assert [line["tokens"] for line in lines] == [[encoder.eos_token_id]] * len(QUESTIONS)
    assert {line["answer"] for line in lines} == {""}


def test_lines_hold_the_entry_the_answer_and_the_settings(answer, tiny_checkpoint):
    lines = answer()
    encoder = QuestionEncoder(tiny_checkpoint, 16)
    for index, line in enumerate(lines):
        image, question = QUESTIONS[index]
        assert (line["question_index"], line["question_id"]) == (index, 7 + index)
        assert (line["image"], line["question"], line["label"]) == (image, question, "yes")
        assert line["answer"] == encoder.decode(line["tokens"]).strip()
        names = image if isinstance(image, list) else [image]
        assert line["pictures"] == [f"../{name}" for name in names]
        settings = line["settings"]
        assert settings["checkpoint"].startswith("sha256:")
        assert (settings["alpha"], settings["layer"]) == (0.1, 6)
        assert (settings["cfg_weight"], settings["temperature"]) == (1.0, 0.0)
        assert settings["system_prompt"] == SYSTEM_PROMPT
        assert set(settings["versions"]) == {"lit_dola", "torch", "transformers", "lightning"}


@pytest.mark.slow
def test_the_system_prompt_is_part_of_the_question(answer):
    plain = answer(out="plain")
    other = answer("--model.system_prompt=", out="other")
    assert [line["tokens"] for line in plain] != [line["tokens"] for line in other]


@pytest.mark.slow
def test_logits_that_are_not_finite_name_the_entry(
    answer, main_here, tmp_path, tiny_checkpoint, monkeypatch
):
    from lit_dola.tasks.answer import UnderstandingJanus

    see = UnderstandingJanus.embed_picture

    def blind(self, pixels):
        embeddings = see(self, pixels)
        red = not pixels.is_meta and pixels.std() > 0.9
        return embeddings * math.nan if red else embeddings

    whole = answer(out="whole")
    monkeypatch.setattr(UnderstandingJanus, "embed_picture", blind)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "d.png")
    questions = [*QUESTIONS[:2], ("d.png", "What?"), QUESTIONS[3]]
    write_questions(tmp_path, questions)
    args = (
        "answer", "--trainer.accelerator=cpu", "--trainer.precision=64-true",
        f"--model.model_path={tiny_checkpoint}", "--data.question_json=questions.jsonl",
        "--writer.output_dir=out", f"--model.max_new_tokens={TOKENS}",
    )  # fmt: skip
    done = main_here(tmp_path, *args)
    assert done.returncode == 1
    assert "questions.jsonl: entry 2: the model's logits are NaN or infinite" in done.stderr
    done = main_here(tmp_path, *args, "--data.on_error=skip")
    assert done.returncode == 3
    (failure,) = map(json.loads, (tmp_path / "out/errors.jsonl").read_text().splitlines())
    assert (failure["prompt_index"], failure["prompt"]) == (2, "What?")
    assert [line["tokens"] for line in answers(tmp_path / "out")] == [
        whole[index]["tokens"] for index in (0, 1, 3)
    ]
