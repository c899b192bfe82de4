"""Answers and rankings from Python are those of the command line."""

import json

import pytest
import torch
from PIL import Image

from lit_dola import JanusPipeline
from lit_dola.errors import UserError
from lit_dola.janus.packing import PackedWeight
from tests.support import forked
from tests.support.commands import CPU

QUESTION = "What is in the image?"
LABELS = ["a red circle", "a blue square", "two birds"]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return JanusPipeline.from_pretrained(str(tiny_checkpoint))


@pytest.fixture
def pictures(tmp_path):
    """A wide and a transparent picture."""
    Image.linear_gradient("L").resize((90, 40)).save(tmp_path / "wide.png")
    Image.new("RGBA", (30, 50), (200, 30, 30, 100)).save(tmp_path / "clear.png")
    return [tmp_path / "wide.png", tmp_path / "clear.png"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_answers_are_those_of_the_command_line(pipeline, pictures, tiny_checkpoint, tmp_path):
    entries = [{"image": path.name, "question": QUESTION} for path in pictures]
    entries.append({"image": ["wide.png", "clear.png"], "question": "Which one is red?"})
    (tmp_path / "questions.json").write_text(json.dumps(entries))
    settings = {"alpha": 0.3, "max_new_tokens": 8, "cfg_weight": 2.0}
    done = forked.run(
        tmp_path,
        ["answer", *CPU, f"--model.model_path={tiny_checkpoint}",
         "--data.question_json=questions.json",
         *(f"--model.{name}={value}" for name, value in settings.items())],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    questions = [QUESTION, QUESTION, "Which one is red?"]
    loaded = Image.open(pictures[1])  # what is in memory is read like a file
    given = [str(pictures[0]), loaded, [pictures[0], loaded]]
    records = pipeline.answer(given, questions, progress=False, **settings)
    expected = lines(tmp_path / "outputs/answers.jsonl")
    assert [record.tokens for record in records] == [line["tokens"] for line in expected]
    assert [record.answer for record in records] == [line["answer"] for line in expected]
    assert records[0].settings == expected[0]["settings"]
    assert records[1].pictures == ["<30 x 50 image>"]


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["likelihood", "yes_no"])
def test_rankings_are_those_of_the_command_line(
    scorer, pipeline, pictures, tiny_checkpoint, tmp_path
):
    entries = [{"image": path.name, "labels": LABELS} for path in pictures]
    (tmp_path / "items.json").write_text(json.dumps(entries))
    done = forked.run(
        tmp_path,
        ["rank", *CPU, f"--model.model_path={tiny_checkpoint}", f"--model.scorer={scorer}",
         "--data.item_json=items.json", "--model.alpha=0.3"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = pipeline.rank(pictures, LABELS, scorer=scorer, alpha=0.3, progress=False)
    expected = lines(tmp_path / "outputs/ranks.jsonl")
    assert [record.scores for record in records] == [line["scores"] for line in expected]
    assert [record.order for record in records] == [line["order"] for line in expected]
    (one,) = pipeline.rank(pictures, LABELS[0], scorer=scorer, alpha=0.3, progress=False)
    assert len(one.scores) == 2
    assert one.scores[0] == expected[0]["scores"][0] or expected[0]["scores"][0] is None


def test_one_question_about_many_pictures_and_the_other_way_round(pipeline, pictures):
    few = {"max_new_tokens": 3, "progress": False}
    many = pipeline.answer(pictures, QUESTION, **few)
    assert [record.pictures for record in many] == [[path.as_posix()] for path in pictures]
    asked = pipeline.answer(pictures[0], [QUESTION, "Is it red?"], **few)
    assert [record.question for record in asked] == [QUESTION, "Is it red?"]
    assert asked[0].tokens == many[0].tokens


def test_both_paths_share_the_language_model(pipeline, pictures):
    """Also after it was moved, and both draw and answer the same as before."""
    few = {"max_new_tokens": 3, "progress": False}
    before = pipeline("a", parallel_size=1, progress=False), pipeline.answer(pictures, "a", **few)
    shared = pipeline.understanding.language_model
    assert shared is pipeline.janus.language_model
    assert pipeline.understanding.text_head.embed is shared.embed_tokens
    assert pipeline.to("cpu") is pipeline
    weights = [module.weight for module in shared.modules() if hasattr(module, "weight")]
    assert not any(isinstance(weight, PackedWeight) for weight in weights)
    assert pipeline.understanding.language_model is pipeline.janus.language_model
    after = pipeline("a", parallel_size=1, progress=False), pipeline.answer(pictures, "a", **few)
    assert torch.equal(before[0].tokens, after[0].tokens)
    assert [record.tokens for record in before[1]] == [record.tokens for record in after[1]]


@pytest.mark.parametrize(
    ("images", "questions", "message"),
    [
        ([], "a", "^images: empty; expected at least one$"),
        (3, "a", "^images: found int; expected a path, an image of Pillow, or a list$"),
        ([None], "a", "^images: found NoneType; expected a path or an image of Pillow$"),
        ("model.png", "a", "^questions: entry 0: model.png: found nothing; expected an image"),
        ("nowhere.png", "a", "^questions: entry 0: nowhere.png: found nothing; expected an image"),
        (["a.png"] * 2, ["a"] * 3, "^images: 2 for 3 questions; expected as many, or one$"),
        (Image.new("RGB", (9, 9)), " ", "^questions: entry 0: question is empty; expected a text$"),
        (Image.new("RGB", (9, 9)), [], "^questions: empty; expected at least one$"),
        (Image.new("RGB", (9, 9)), [3], "^questions: entry 0: question is a number; expected a s"),
        (
            Image.new("RGB", (9, 9)),
            "a " * 9000,
            "^questions: entry 0: question has 9145 tokens, 1 pict",
        ),
    ],
)
def test_what_cannot_be_answered(images, questions, message, pipeline):
    with pytest.raises(UserError, match=message):
        pipeline.answer(images, questions, progress=False)


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([], {}, "^images: entry 0: labels is an empty list; expected at least one text$"),
        (["a", ""], {}, "^images: entry 0: a label is empty; expected a text$"),
        (["a"], {"scorer": "siglip"}, "^scorer: 'siglip'; expected 'likelihood' or 'yes_no'$"),
        (["a"], {"alpha": -1}, "^alpha: -1; expected a number, 0 <= alpha <= 1$"),
        (["a"], {"scorer": "yes_no", "question": "Is it?"}, "^question: 'Is it.' has no {label}"),
        (
            ["a"],
            {"quantize": "int8wo"},
            "^quantize: not a setting of rank; expected it in from_pre",
        ),
    ],
)
def test_what_cannot_be_ranked(labels, settings, message, pipeline):
    with pytest.raises(UserError, match=message):
        pipeline.rank(Image.new("RGB", (9, 9)), labels, progress=False, **settings)


def test_a_device_that_is_not_there(pipeline):
    with pytest.raises(UserError, match=r"^device: mps; expected cpu or cuda$"):
        pipeline.to("mps")
