"""What provokes the messages of ``lens``."""

import json

import torch

from lit_dola.training.readouts import LitLens
from tests.support.questions import write_pictures
from tests.training.test_lens import spoiled
from tests.troubleshooting.scene import case


def _generate(scene, prompts):
    scene.write_prompts(prompts)
    assert scene.predict("--writer.save_tokens=true", "--writer.output_dir=own")[0] == 0


def _train(scene, *args):
    return scene.main(
        "lens", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=1",
        f"--model.model_path={scene.checkpoint}", *args,
    )  # fmt: skip


@case("sequences of 1 prompt(s)")
def one_prompt(scene):
    _generate(scene, ["a cat"])
    return _train(scene, "--data.runs=[own]"), 1


def _spoiled(message, kind):
    @case(message)
    def spoil(scene):
        _generate(scene, ["a cat", "a dog"])
        run = spoiled(kind, scene.folder / "own", scene.folder)
        return _train(scene, f"--data.runs=[{run}]"), 1


for message, kind in {
    "images of another checkpoint": "other checkpoint",
    "expected a run with --writer.save_tokens": "no tokens",
    "no images; expected the folder": "nothing",
    "img_00.npy: not readable as tokens": "broken tokens",
    "img_00.npy: tokens of shape": "other length",
}.items():
    _spoiled(message, kind)

LENS = {
    "model.layers: 8 is not a middle layer": ["--model.layers=[8]"],
    "lenses are trained in float32": ["--trainer.precision=bf16-true"],
}


def _wrong_setting(message, args):
    @case(message)
    def wrong(scene):
        _generate(scene, ["a cat", "a dog"])
        return _train(scene, "--data.runs=[own]", *args), 1


for message, args in LENS.items():
    _wrong_setting(message, args)


def _trained(message, *args):
    @case(message)
    def trained(scene):
        _generate(scene, ["a cat", "a dog"])
        code, said = _train(scene, "--data.runs=[own]", *args)
        (line,) = [line for line in said.splitlines(keepends=True) if message[:12] in line]
        return (code, line), 0


_trained("nats, all layers", "--trainer.max_steps=50", "--trainer.val_check_interval=60")
_trained("held out: ", "--trainer.max_steps=50")


@case("data.runs: empty")
def no_runs(scene):
    return _train(scene, "--data.runs=[]"), 1


def _captions(message, captions, *args):
    @case(message)
    def captioned(scene):
        write_pictures(scene.folder)
        (scene.folder / "captions.json").write_text(json.dumps(captions))
        return _train(scene, "--data.picture_json=captions.json", *args), 1


_captions("expected an object with image and prompt", ["a cat"])
_captions("picture_json: no answers", [], "--model.head=text")


@case("out of memory with")
def no_memory(scene):
    def allocate(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    _generate(scene, ["a cat", "a dog"])
    scene.monkeypatch.setattr(LitLens, "training_step", allocate)
    return _train(scene, "--data.runs=[own]"), 1
