"""What provokes the messages about questions, pictures and priors."""

import json
from functools import partial

import numpy as np
from PIL import Image

from tests.support.questions import write_pictures
from tests.troubleshooting.scene import CASES, case

GOOD = {"image": "a.png", "question": "What is this?"}


def answer(scene, *entries, args=()):
    """Ask the model of the scene."""
    write_pictures(scene.folder)
    (scene.folder / "questions.json").write_text(json.dumps([GOOD, *entries]))
    return scene.main(
        "answer", "--trainer.accelerator=cpu", "--trainer.devices=1", "--model.max_new_tokens=2",
        f"--model.model_path={scene.checkpoint}", *args,
    )  # fmt: skip


ENTRIES = {
    "found a string; expected an object with image and question": "What?",
    "no question among": {"image": "a.png"},
    "no image among": {"question": "What?"},
    "image is an empty list": {"image": [], "question": "What?"},
    "image is https://example.org/a.png": {
        "image": "https://example.org/a.png",
        "question": "What?",
    },
    "expected data: with": {"image": "data:image/png,abc", "question": "What?"},
    "is not base64": {"image": "data:;base64,§", "question": "What?"},
    "4 cells; expected picture": "a.png\tWhat?\tYes\tNo",
    "conversations has 2 questions": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "What?"}] * 2,
    },
    "the question has 2 <image>; expected none": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image><image>"}],
    },
    "image is null": {"image": None, "question": "What?"},
    "pictures included": {"image": "a.png", "question": "what " * 1000},
    "<image_placeholder>; expected none": {"image": "a.png", "question": "<image_placeholder>" * 2},
    "found nothing; expected an image": {"image": "z.png", "question": "What?"},
    "not an image; expected JPEG": {"image": "page.png", "question": "What?"},
    "a broken image": {"image": "cut.png", "question": "What?"},
    "pixels are not finite": {"image": "nan.tiff", "question": "What?"},
    "pixels from -1 to 99000": {"image": "metres.tiff", "question": "What?"},
}


def ask(entry, scene):
    (scene.folder / "page.png").write_text("<!doctype html>")
    write_pictures(scene.folder)
    (scene.folder / "cut.png").write_bytes((scene.folder / "a.png").read_bytes()[:9000])
    for name, number in (("nan", np.nan), ("metres", 99_000)):
        pixels = np.array([[-1, number]], dtype=np.float32)
        Image.fromarray(pixels).save(scene.folder / f"{name}.tiff")
    return answer(scene, entry), 1


ANNOTATIONS = {
    "is not among its annotations": {"question_id": 8, "answers": [], "multiple_choice_answer": ""},
    "not an annotation of VQAv2": {"question_id": 7},
}


def annotate(annotation, scene):
    (scene.folder / "annotations.json").write_text(json.dumps({"annotations": [annotation]}))
    return answer(scene, {**GOOD, "question_id": 7}), 1


PRIORS = {
    "' yes' has 'much'": '{" yes": "much"}',
    "'' has no token": '{"": 1}',
    "start with the same token": '{"a b": 1, "a c": 2}',
}


def use_prior(prior, scene):
    (scene.folder / "prior.json").write_text(prior)
    return answer(scene, args=["--model.prior=prior.json"]), 1


SIZES = {
    "the image's size is None": {"size": None},
    "the image's size is 32": {"size": {"height": 32}},
    "min_size is -1": {"min_size": -1},
    "image_mean is [0.5]": {"image_mean": [0.5]},
}


def change_processor(values, scene):
    scene.edit("preprocessor_config.json", lambda config: config.update(values))
    return answer(scene), 1


for provoke, cases in (
    (ask, ENTRIES),
    (annotate, ANNOTATIONS),
    (use_prior, PRIORS),
    (change_processor, SIZES),
):
    for fragment, value in cases.items():
        CASES[fragment] = partial(provoke, value)


@case("0 x 5 pixels")
def nothing_to_see(scene):
    scene.monkeypatch.setattr(Image.Image, "width", 0)
    scene.monkeypatch.setattr(Image.Image, "height", 5)
    return answer(scene), 1


@case("pixels, a possible decompression bomb")
def bomb(scene):
    scene.monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 25_000)
    Image.new("L", (200, 200)).save(scene.folder / "large.png")
    return answer(scene, {"image": "large.png", "question": "What?"}), 1


@case("model.prior: …: not found")
def no_prior(scene):
    return answer(scene, args=["--model.prior=prior.json"]), 1


@case("expected runs of one kind")
def two_kinds(scene):
    scene.predict("--writer.output_dir=one", "--trainer.enable_progress_bar=false")
    answer(scene, args=["--writer.output_dir=two"])
    return scene.main("compare", "one", "two", "--output=page"), 1


def evaluate(scene, *args):
    answer(scene)  # writes the questions
    (scene.folder / "evaluate.yaml").write_text(
        "task: answer\nvariants: {baseline: {dola: false}, dola: {}}\n"
    )
    return scene.main(
        "evaluate", "--config=evaluate.yaml", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--trainer.enable_progress_bar=false", "--writer.output_dir=evaluated",
        f"--model.model_path={scene.checkpoint}", "--model.max_new_tokens=2", *args,
    )  # fmt: skip


@case("the task answer generates no images")
def scorer_of_answers(scene):
    (scene.folder / "scorer.yaml").write_text(
        "scorer: {class_path: tests.test_evaluation.Redness}\n"
    )
    return evaluate(scene, "--config=scorer.yaml"), 1


@case("no entry has a label")
def no_labels(scene):
    return evaluate(scene), 1
