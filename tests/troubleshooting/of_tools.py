"""What provokes the messages of ``evaluate``, ``compare`` and Python."""

import numpy as np
import torch
from PIL import Image

from lit_dola import JanusPipeline, UserError
from tests.support.hub import hub
from tests.troubleshooting.scene import CASES, case

RED = Image.new("RGB", (20, 20), "red")
EVALUATE = {
    "variants: empty": ["--variants={}"],
    "'a/b' is not a safe folder name": ["--variants={a/b: {dola: false}}"],
    "applies to all variants": ["--variants={sharp: {seed: 3}}"],
    "alhpa: not a setting of the model": ["--variants={sharp: {alhpa: 0.3}}"],
    "is not a variant": ["--reference=nothing"],
    "grid.alpha: no values": ["--grid={alpha: []}"],
    "alpha-0.1 occurs twice": ["--grid={alpha: [0.1, 0.1]}"],
    "is also in variants": ["--variants={alpha-0.1: {}}", "--grid={alpha: [0.1]}"],
    "sheet_prompts: 9": ["--sheet_prompts=[9]"],
    "sheet_image: 2": ["--sheet_image=2"],
    "has no id": ["--export=dpg", "--scorer=null"],
    "fails on": ["--scorer=tests.troubleshooting.of_tools.Fails"],
    "returns nan": ["--scorer=tests.troubleshooting.of_tools.NotANumber"],
}
"""Settings of ``evaluate``, by a part of the message."""


class Fails:
    def __call__(self, image, metadata):
        return metadata["shape"]


class NotANumber:
    def __call__(self, image, metadata):
        return float("nan")


@case("scorer: /nowhere")
def no_clip(scene):
    scorer = "lit_dola.evaluation.scorers.ClipScore"
    return scene.evaluate(f"--scorer={scorer}", "--scorer.model=/nowhere"), 1


@case("vqa_list is 'x'")
def no_pairs(scene):
    scene.write_prompts([{"prompt": "a", "vqa_list": "x"}])
    scorer = "lit_dola.evaluation.scorers.SoftTifa"
    return scene.evaluate(f"--scorer={scorer}", f"--scorer.model={scene.checkpoint}"), 1


ENTRY = {"prompt_id": 1, "style": "anime", "style_index": 0}
EXPORTS = {
    "export geneval2: 'a'": ("geneval2", [["a", "a"]]),
    "export t2i-compbench": ("t2i-compbench", [["a/b"]]),
    "prompt 0 has no prompt_id": ("wise", [["a"]]),
    "prompt_id 1 occurs twice": ("wise", [[{"prompt": "a", **ENTRY}, {"prompt": "b", **ENTRY}]]),
    "no style or style_index": ("hpsv2", [["a"]]),
    "of anime occurs twice": ("hpsv2", [[{"prompt": "a", **ENTRY}, {"prompt": "b", **ENTRY}]]),
    "export wise: 2 images": ("wise", [[{"prompt": "a", **ENTRY}], 2]),
}
"""An export, the entries, and the number of images, by a part of the message."""


def exported(export, entries, images=1):
    def provoke(scene):
        scene.write_prompts(entries)
        flags = [f"--export={export}", "--scorer=null", f"--model.parallel_size={images}"]
        return scene.evaluate(*flags), 1

    return provoke


for message, (export, given) in EXPORTS.items():
    CASES[message] = exported(export, *given)
for message, flags in EVALUATE.items():
    CASES[message] = lambda scene, flags=flags: (scene.evaluate(*flags), 1)


@case("matplotlib is not installed")
def no_matplotlib(scene):
    scene.monkeypatch.setattr("lit_dola.settings.checks.find_spec", lambda name: None)
    return scene.evaluate(), 1


@case("2 images of prompt …")
def two_images(scene):
    (scene.folder / "dpg").mkdir()
    (scene.folder / "dpg" / "a.txt").write_text("a cat")
    return scene.evaluate("--export=dpg", "--scorer=null", "--data.prompt_json=dpg"), 1


@case("the ids 'a/b' and 'a:b'")
def equal_names(scene):
    scene.write_prompts([{"id": "a/b", "prompt": "a"}, {"id": "a:b", "prompt": "b"}])
    return scene.evaluate("--export=dpg", "--scorer=null", "--model.parallel_size=1"), 1


@case("no run; expected the folder of a run or an evaluation")
def status_of_nothing(scene):
    return scene.main("status", "."), 1


@case("No such file or directory; expected the folder of a run")
def status_of_no_folder(scene):
    return scene.main("status", "nothing"), 1


@case("torchrun has started 4 processes")
def one_device_under_torchrun(scene):
    for name, value in {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}.items():
        scene.monkeypatch.setenv(name, value)
    return scene.predict(), 1


@case("no results of a run")
def no_run(scene):
    return scene.main("compare", "outputs/nothing", "outputs", "--output=page"), 1


@case("not a folder; expected one that predict has written")
def file_for_a_folder(scene):
    return scene.main("compare", "prompt.json", "outputs", "--output=page"), 1


@case("compare: 1 run")
def one_run(scene):
    return scene.main("compare", "outputs", "--output=page"), 1


@case("a run is given twice")
def same_run(scene):
    return scene.main("compare", "outputs", "outputs/", "--output=page"), 1


@case("an unknown form")
def unknown_form(scene):
    return scene.main("export", "parqet", "outputs", "--output=out"), 1


@case("no images to export")
def nothing_to_export(scene):
    return scene.main("export", "flat", ".", "--output=out"), 1


@case("has not ended; expected a run that has")
def run_that_has_not_ended(scene):
    assert scene.predict()[0] == 0
    (scene.folder / "outputs/metadata.0.ab.jsonl").touch()
    return scene.main("export", "parquet", "outputs", "--output=out"), 1


def export(scene, *args, form="parquet"):
    assert scene.predict("--writer.save_tokens=logprobs")[0] == 0
    return scene.main("export", form, "outputs", "--output=out", *args), 1


def export_after(scene, pattern, spoil):
    assert scene.predict("--writer.save_tokens=logprobs", "--writer.format=png")[0] == 0
    spoil(next((scene.folder / "outputs").glob(pattern)))
    return scene.main("export", "parquet", "outputs", "--output=out"), 1


@case("missing or cut off; expected a complete run")
def image_that_is_gone(scene):
    return export_after(scene, "*/img_00.png", lambda path: path.unlink())


@case("img_00.npz: not readable as tokens")
def damaged_log_probabilities(scene):
    return export_after(scene, "*/img_00.npz", lambda path: path.write_bytes(b"PK"))


@case("values of several types under one key")
def key_of_two_types(scene):
    scene.write_prompts([{"prompt": "a", "size": 1}, {"prompt": "b", "size": "large"}])
    return export(scene)


@case("export openai-batch: prompt 0")
def prompts_that_are_no_requests(scene):
    return export(scene, form="openai-batch")


@case("push: 'cats'")
def repository_without_owner(scene):
    return export(scene, "--push=cats")


@case("push: no token")
def upload_without_token(scene):
    scene.monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    return export(scene, "--push=me/cats")


@case("the shards are in")
def token_that_is_refused(scene):
    with hub() as served:
        scene.monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_other")
        scene.monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.address)
        scene.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        return export(scene, "--push=me/cats")


@case("is no dataset; expected webdataset or parquet")
def upload_of_a_benchmark(scene):
    return export(scene, "--push=me/cats", form="flat")


@case("none of the images is in all of")
def other_prompts(scene):
    assert scene.predict("--writer.output_dir=one")[0] == 0
    scene.write_prompts(["another"])
    assert scene.predict("--writer.output_dir=two")[0] == 0
    return scene.main("compare", "one", "two", "--output=page"), 1


def two_runs(scene):
    for name, alpha in (("one", 0.1), ("two", 0.2)):
        assert scene.predict(f"--writer.output_dir={name}", f"--model.alpha={alpha}")[0] == 0


@case("whose gallery would be replaced")
def page_in_a_run(scene):
    two_runs(scene)
    return scene.main("compare", "one", "two", "--output=one"), 1


@case("output: cannot write to")
def page_in_a_file(scene):
    two_runs(scene)
    return scene.main("compare", "one", "two", "--output=prompt.json"), 1


def python(load=None, generate=None, decode=None, **calls):
    """Load a pipeline and call a method; return what a script that fails prints."""

    def provoke(scene):
        try:
            pipeline = JanusPipeline.from_pretrained(scene.checkpoint, **(load or {}))
            if generate is not None:
                pipeline.generate(**generate)
            elif calls:
                for name, given in calls.items():
                    getattr(pipeline, name)(*given[:2], **dict(given[2:]))
            else:
                pipeline.decode(decode)
        except UserError as error:
            return (1, f"error: {error}\n"), 1
        return (0, ""), 1

    return provoke


CASES |= {
    "'gpu' is an unknown device": python(load={"device": "gpu"}),
    "device: cuda:9": python(load={"device": "cuda:9"}),
    "device: mps": python(load={"device": "mps"}),
    "dtype: torch.float64": python(load={"dtype": torch.float64}),
    "backend: not a setting of generate": python(generate={"prompts": "a", "backend": "deepseek"}),
    "a name of diffusers": python(generate={"prompts": "a", "guidance_scale": 3}),
    "alpha: 2; expected a number": python(generate={"prompts": "a", "alpha": 2}),
    "prompts: found int": python(generate={"prompts": 3}),
    "seed: 2.5; expected": python(generate={"prompts": "a", "seed": [2.5]}),
    "3 seeds for 2 prompt(s)": python(generate={"prompts": ["a", "b"], "seed": [1, 2, 3]}),
    "callback_on_step: found": python(generate={"prompts": "a", "callback_on_step": 3}),
    "images: found int": python(answer=(3, "What?")),
    "images: found …": python(answer=([None], "What?")),
    "`images: empty": python(answer=([], "What?")),
    "questions: empty": python(answer=(RED, [])),
    "images: 2 for 3 questions": python(answer=([RED, RED], ["What?"] * 3)),
    "questions: entry 0": python(answer=(RED, " ")),
    "images: entry 0": python(rank=(RED, [])),
    "scorer: 'siglip'": python(rank=(RED, ["red"], ("scorer", "siglip"))),
    "tokens: found shape": python(decode=[[1, 2]]),
    "tokens: found torch.float32": python(decode=np.zeros(16, np.float32)),
    "`tokens: found … to": python(decode=np.full(16, 10**6)),
    "`tokens: …; expected": python(decode=[[1], [1, 2]]),
}


@case("pixels of image 0 are NaN")
def not_finite(scene):
    name = "model.vqmodel.quantize.embedding.weight"
    scene.spoil(lambda weights: weights[name].fill_(float("nan")))
    return python(decode=np.zeros(16, np.int64))(scene)


@case("no log-probabilities were measured")
def saving_what_was_not_measured(scene):
    return _save(scene, "new", save_tokens="logprobs")


@case("figure: the images were not inspected")
def not_inspected(scene):
    try:
        JanusPipeline.from_pretrained(scene.checkpoint)("a", parallel_size=1).figure()
    except UserError as error:
        return (1, f"error: {error}\n"), 1
    return (0, ""), 1


@case("holds results of a run; expected another one")
def saved_twice(scene):
    return _save(scene, "made", "made")


@case("folder: cannot write to")
def saved_into_a_file(scene):
    (scene.folder / "file").write_text("")
    return _save(scene, "file")


def _save(scene, *names, **how):
    made = JanusPipeline.from_pretrained(scene.checkpoint)("a", parallel_size=1)
    try:
        for name in names:
            made.save(scene.folder / name, **how)
    except UserError as error:
        return (1, f"error: {error}\n"), 1
    return (0, ""), 1


@case("config: demos: not found")
def unknown_config(scene):
    return scene.main("predict", "--config=demos"), 2


@case("nor beside the configuration")
def nowhere_near(scene):
    (scene.folder / "sub").mkdir()
    (scene.folder / "sub/mine.yaml").write_text("data: {prompt_json: no.txt}")
    return scene.predict("--config=sub/mine.yaml"), 1


@case("configs: demos: not found")
def unknown_name(scene):
    return scene.main("configs", "demos"), 1


@case("exists; expected another output")
def copied_twice(scene):
    assert scene.main("configs", "demo")[0] == 0
    return scene.main("configs", "demo"), 1
