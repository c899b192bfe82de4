"""What provokes the messages about rankings."""

import json
from functools import partial

from safetensors.torch import load_file, save_file

from tests.support.questions import write_pictures
from tests.support.siglips import make_siglip
from tests.troubleshooting.scene import CASES, case

GOOD = {"image": "a.png", "labels": ["a cat", "a dog"]}


def siglip(scene):
    folder = scene.folder / "siglip"
    if not folder.exists():
        make_siglip(folder)
    return folder


def rank(scene, *entries, model=None, args=()):
    """Rank labels with a SigLIP, or with the model that is given."""
    write_pictures(scene.folder)
    (scene.folder / "items.json").write_text(json.dumps([GOOD, *entries]))
    return scene.main(
        "rank", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--trainer.enable_progress_bar=false", "--writer.output_dir=ranks",
        f"--model.model_path={model or siglip(scene)}", *args,
    )  # fmt: skip


ENTRIES = {
    "found a string; expected an object with image and labels": "a.png",
    "image is a list of 2": {"image": ["a.png", "b.png"], "labels": ["a cat"]},
    "no labels; expected": {"image": "a.png"},
    "labels is a string": {"image": "a.png", "labels": "a cat"},
    "labels is an empty list": {"image": "a.png", "labels": []},
    "a label is null": {"image": "a.png", "labels": ["a cat", None]},
}
for fragment, entry in ENTRIES.items():
    CASES[fragment] = partial(lambda entry, scene: (rank(scene, entry), 1), entry)


@case("tokens; the text tower reads")
def long_label(scene):
    return rank(scene, {"image": "b.png", "labels": ["a very " * 20 + "long label"]}), 0


@case("expected the folder of a run that has ended")
def no_run(scene):
    return rank(scene, args=["--data.run=nowhere"]), 1


@case("not the record of an image; expected metadata")
def other_records(scene):
    (scene.folder / "run").mkdir()
    (scene.folder / "run/metadata.jsonl").write_text('{"prompt": "a cat"}\n')
    return rank(scene, args=["--data.run=run"]), 1


@case("not the best images of a run")
def spoilt_best(scene):
    scene.predict("--writer.output_dir=run", "--trainer.enable_progress_bar=false")
    (scene.folder / "run/best.json").write_text('{"prompts": [1]}')
    return scene.predict("--writer.output_dir=run", "--trainer.enable_progress_bar=false"), 1


@case("has no {label}")
def question_without_a_label(scene):
    args = ["--model.scorer=yes_no", "--model.question=Is it there?"]
    return rank(scene, model=scene.checkpoint, args=args), 1


@case("the scorer siglip has no such weights")
def quantized(scene):
    return rank(scene, args=["--model.quantize=int8wo"]), 1


@case("a sharded model cannot rank")
def sharded(scene):
    return rank(scene, args=["--trainer.strategy=fsdp2"]), 1


@case("not readable as a SigLIP config")
def spoilt_config(scene):
    path = siglip(scene) / "config.json"
    content = json.loads(path.read_text())
    content["vision_config"] = 3
    path.write_text(json.dumps(content))
    return rank(scene), 1


@case("no SigLIP can be loaded")
def cut_weights(scene):
    path = siglip(scene) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return rank(scene), 1


def change(file, of_siglip, scene):
    path = siglip(scene) / file
    content = json.loads(path.read_text())
    of_siglip(content)
    path.write_text(json.dumps(content))
    return rank(scene), 1


@case("weights do not fit its config.json; left over")
def fewer_layers(scene):
    fewer = {"num_hidden_layers": 3}
    return change("config.json", lambda it: it["vision_config"].update(fewer), scene)


@case("no picture can be compared with a text")
def two_channels(scene):
    newest = (siglip(scene) / "processor_config.json").read_text()
    file = "processor_config.json" if "image_mean" in newest else "preprocessor_config.json"

    def spoil(content):
        content.get("image_processor", content)["image_mean"] = [0.5, 0.5]

    return change(file, spoil, scene)


@case("a black picture has scores that are not finite")
def infinite_scale(scene):
    path = siglip(scene) / "model.safetensors"
    weights = load_file(path)
    weights["logit_scale"].fill_(1e30)
    save_file(weights, path, metadata={"format": "pt"})
    return rank(scene), 1


@case("has no pooling head")
def no_head(scene):
    path = siglip(scene) / "config.json"
    content = json.loads(path.read_text())
    content["vision_config"]["vision_use_head"] = False
    path.write_text(json.dumps(content))
    return rank(scene), 1
