"""``main.py evaluate``: every variant on the same prompts and noise, scored and compared."""

import json
import re
import weakref
from statistics import fmean

import numpy as np
import pytest
import yaml
from PIL import Image

from lit_dola.tasks.answer import Answer, Answers, LitAnswer
from tests.support import forked
from tests.support.commands import ddp, messages, records
from tests.support.pages import Page
from tests.support.questions import write_pictures
from tests.support.siglips import make_siglip

PROMPTS = [
    {"tag": "colors", "include": [{"class": "apple", "count": 1}], "prompt": "a red apple"},
    {"tag": "colors", "include": [{"class": "bird", "count": 1}], "prompt": "a blue bird"},
    {"tag": "counting", "include": [{"class": "bird", "count": 2}], "prompt": "two birds"},
]
VARIANTS = {"baseline": {"dola": False}, "dola": {}, "sharp": {"alpha": 0.5, "layer": 3}}


class Redness:
    """A scorer that is easy to check: how red an image is."""

    def __call__(self, image: Image.Image, metadata: dict) -> float:
        assert metadata["include"]
        return float(np.asarray(image)[..., 0].mean() / 255)


@pytest.fixture
def folder(tmp_path, tiny_checkpoint):
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    config = {
        "trainer": {"accelerator": "cpu", "devices": 1},
        "model": {"model_path": str(tiny_checkpoint), "parallel_size": 2, "images_per_batch": 6},
        "data": {"prompt_json": "prompts.jsonl"},
        "writer": {"output_dir": "out", "format": "png"},
        "variants": VARIANTS,
        "scorer": {"class_path": "tests.test_evaluation.Redness"},
    }
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def evaluate(folder, main_here):
    return lambda *args: main_here(folder, "evaluate", "--config", "evaluate.yaml", *args)


def redness(folder, name):
    """The redness of each image, by prompt."""
    return [
        [np.asarray(Image.open(path))[..., 0].mean() / 255 for path in sorted(prompt.iterdir())]
        for prompt in sorted((folder / "out" / name).iterdir())
        if prompt.is_dir()
    ]


@pytest.mark.slow
def test_the_report_says_what_the_images_show(folder, evaluate):
    done = evaluate()
    assert (done.returncode, messages(done.stderr)) == (0, "")
    said = done.stderr.splitlines()
    assert [line.partition(": ")[0] for line in said] == [
        n for name in VARIANTS for n in (name, name)
    ]
    header, *rows, path = done.stdout.splitlines()
    assert header.split() == ["variant", "percent", "right", "more", "than", "baseline", "p"]
    assert [row.split()[0] for row in rows] == [*VARIANTS]
    assert path == "out/index.html"
    report = json.loads((folder / "out/report.json").read_text())
    assert report["variants"] == VARIANTS
    assert report["reference"] == "baseline"
    baseline = redness(folder, "baseline")
    for name in VARIANTS:
        found = redness(folder, name)
        colors, counting = fmean(found[0] + found[1]), fmean(found[2])
        rates = {skill: rate["mean"] for skill, rate in report["rates"][name].items()}
        assert rates == pytest.approx(
            {"colors": colors, "counting": counting, "overall": (colors + counting) / 2}, abs=1e-6
        )
        if name != "baseline":
            gained = np.subtract(found[2], baseline[2]).mean()
            assert report["differences"][name]["counting"]["mean"] == pytest.approx(
                gained, abs=1e-6
            )
    assert (folder / "out/report.md").exists()
    assert (folder / "out/report.svg").exists()
    page = Page((folder / "out/index.html").read_text())
    links = {*page.attributes("a", "href")}
    assert links >= {"compare/index.html", *(f"{name}/index.html" for name in VARIANTS)}
    assert all((folder / "out" / link).is_file() for link in links)


@pytest.mark.slow
def test_a_variant_is_a_run_of_predict(folder, evaluate, main_here):
    assert evaluate().returncode == 0
    config = yaml.safe_load((folder / "evaluate.yaml").read_text())
    config = {key: config[key] for key in ("trainer", "model", "data", "writer")}
    (folder / "predict.yaml").write_text(yaml.safe_dump(config))
    for name, flag in (("baseline", "dola=false"), ("sharp", "alpha=0.5")):
        flags = [f"--model.{flag}", f"--writer.output_dir=alone/{name}"]
        flags += ["--model.layer=3"] if name == "sharp" else []
        done = main_here(folder, "predict", "--config", "predict.yaml", *flags)
        assert done.returncode == 0, done.stderr
        for path in (folder / "alone" / name).rglob("*.png"):
            other = folder / "out" / path.relative_to(folder / "alone")
            assert path.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_it_goes_on_where_it_was(folder, evaluate):
    assert evaluate().returncode == 0
    before = (folder / "out/report.json").read_bytes()
    image = next((folder / "out/sharp").glob("00002*/img_00.png"))
    made = image.read_bytes()
    times = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*/*/*.png")}
    image.unlink()
    assert evaluate().returncode == 0
    assert image.read_bytes() == made
    assert (folder / "out/report.json").read_bytes() == before
    del times[image]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


@pytest.mark.slow
def test_the_weights_are_loaded_once(evaluate, monkeypatch):
    from lit_dola.tasks import generate

    loads = []
    load = generate.load_janus
    monkeypatch.setattr(generate, "load_janus", lambda *a, **k: loads.append(1) or load(*a, **k))
    assert evaluate().returncode == 0
    assert loads == [1]


@pytest.mark.slow
def test_variants_are_batched_alike(folder, evaluate, monkeypatch):
    """Less memory may be free for the second one."""
    from lit_dola.tasks import decode

    fitting = iter([4, 3, 2])
    monkeypatch.setattr(decode, "images_that_fit", lambda *_: next(fitting))
    done = evaluate("--model.images_per_batch=auto", "--trainer.precision=bf16-true")
    assert done.returncode == 0, done.stderr
    sizes = [
        line["images_per_batch"] for name in VARIANTS for line in records(folder / "out" / name)
    ]
    assert sizes == [4] * len(sizes)


@pytest.mark.slow
def test_a_variant_frees_its_cache(evaluate, monkeypatch):
    """Dozens of variants have to fit into memory."""
    from lit_dola.decoding.cache import KVCache

    alive = weakref.WeakSet()
    most = []
    make = KVCache.__init__

    def counted(self, *args, **kwargs):
        make(self, *args, **kwargs)
        alive.add(self)
        most.append(len(alive))

    monkeypatch.setattr(KVCache, "__init__", counted)
    assert evaluate().returncode == 0
    assert most == [1] * len(VARIANTS)


@pytest.mark.slow
def test_export(folder, evaluate):
    done = evaluate("--export=geneval", "--scorer=null")
    assert done.returncode == 0, done.stderr
    for name in VARIANTS:
        for prompt_index, prompt in enumerate(PROMPTS):
            subfolder = folder / f"out/geneval/{name}/{prompt_index:05}"
            assert json.loads((subfolder / "metadata.jsonl").read_text()) == prompt
            assert len(list((subfolder / "samples").glob("0000[01].png"))) == 2
    assert not (folder / "out/report.json").exists()


@pytest.mark.slow
def test_dpg_benchs_folder_of_prompts(folder, evaluate):
    (folder / "dpg").mkdir()
    for name in ("b10", "a9"):
        (folder / f"dpg/{name}.txt").write_text(f"the prompt of {name}\n")
    flags = ["--data.prompt_json=dpg", "--model.parallel_size=4", "--scorer=null"]
    done = evaluate(*flags, "--export=dpg")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / "out/dpg/dola").iterdir()) == [
        "a9.png",
        "b10.png",
    ]
    with Image.open(folder / "out/dpg/dola/a9.png") as grid:
        assert grid.size == (32, 32)
        record = json.loads((folder / "out/dola/metadata.jsonl").read_text().splitlines()[0])
        assert record["prompt"] == "the prompt of a9"
        with Image.open(folder / "out/dola" / record["file_name"]) as image:
            np.testing.assert_array_equal(np.asarray(grid.crop((0, 0, 16, 16))), np.asarray(image))


ERRORS = {
    "an unknown setting": (
        ["--variants={x: {alhpa: 0.1}}"],
        "variants.x: .*alhpa",
    ),
    "a wrong value": (["--variants={x: {alpha: 2}}"], "variants.x: .*alpha"),
    "one for all settings": (
        ["--variants={x: {seed: 3}}"],
        "variants.x: seed applies to all variants; expected it in model",
    ),
    "no setting": (["--variants={}"], "variants: empty; expected at least one"),
    "a name that is a path": (
        ["--variants={../x: {}}"],
        "variants: '../x' is not a safe folder name",
    ),
    "another reference": (
        ["--reference=nothing"],
        "reference: 'nothing' is not a variant; expected one of baseline, dola, sharp",
    ),
    "a layer that is not there": (
        ["--variants={x: {layer: 8}}"],
        "model.layer: 8 is not a middle layer",
    ),
    "no such scorer": (["--scorer=tests.test_evaluation.Blueness"], "scorer"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line(evaluate, folder, case):
    flags, message = ERRORS[case]
    done = evaluate(*flags)
    assert done.returncode in (1, 2)
    assert messages(done.stderr).count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert re.search(message, done.stderr), done.stderr
    assert not list(folder.glob("out/*/*/*.png"))


@pytest.mark.slow
def test_only_what_was_asked_for_is_scored(folder, evaluate):
    """In the folder of an earlier, larger evaluation."""
    few = ["--model.parallel_size=1", "--data.prompt_json=few.jsonl"]
    (folder / "few.jsonl").write_text("\n".join(map(json.dumps, PROMPTS[:2])))
    assert evaluate(*few, "--writer.output_dir=alone", "--export=geneval").returncode == 0
    assert evaluate("--export=geneval").returncode == 0
    assert evaluate(*few, "--export=geneval").returncode == 0
    for name in ("report.json", "report.md", "dola/scores.jsonl"):
        assert (folder / "out" / name).read_text() == (folder / "alone" / name).read_text()
    assert len(list(folder.glob("out/geneval/dola/*/samples/*.png"))) == 2


@pytest.mark.slow
def test_the_folder_that_the_run_has_chosen_is_scored(folder, evaluate):
    seed = ["--model.seed=5", "--export=geneval"]
    assert evaluate(*seed, "--writer.output_dir=alone").returncode == 0
    assert evaluate().returncode == 0
    assert evaluate(*seed, "--writer.on_mismatch=new_folder").returncode == 0
    assert (folder / "out/report.json").read_text() == (folder / "alone/report.json").read_text()
    sample = "geneval/dola/00000/samples/00000.png"
    with Image.open(folder / "out" / sample) as one, Image.open(folder / "alone" / sample) as two:
        assert np.array_equal(np.asarray(one), np.asarray(two))


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("{a: {}, b: {layer: 99}}", "variants.b: model.layer: 99 is not a middle layer"),
        ("{a: {}, b: {alpha: null}}", "variants.b: alpha: null; expected a value"),
        ("{a: {}, b: {temperature: .inf}}", "variants.b: .*temperature"),
    ],
)
def test_every_variant_is_checked_before_anything_is_drawn(variants, message, folder, evaluate):
    done = evaluate(f"--variants={variants}")
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert not (folder / "out").exists()


@pytest.mark.distributed
def test_two_ranks_find_the_same(folder, evaluate):
    assert evaluate().returncode == 0
    one = json.loads((folder / "out/report.json").read_text())
    (folder / "out").rename(folder / "out1")
    paths = [f"--data.prompt_json={folder}/prompts.jsonl", f"--writer.output_dir={folder}/out"]
    args = ["evaluate", f"--config={folder}/evaluate.yaml", *paths, *ddp(2)]
    for done in forked.run_ranks(folder, 2, args):
        assert done.returncode == 0, done.stderr
    assert json.loads((folder / "out/report.json").read_text()) == one


QUESTIONS = [("yes", "yes"), ("no", "yes"), ("yes", "no"), ("no", "no"), ("yes", "yes")]
"""What is said, and what is right."""


@pytest.fixture
def said(monkeypatch):
    """Let every answer be the text of its entry."""

    def answer(self, batch, batch_idx):
        texts = [(request, request.entry.metadata["says"]) for request in batch]
        return Answers([Answer(request, text, [7], None) for request, text in texts], [])

    monkeypatch.setattr(LitAnswer, "predict_step", answer)


def evaluate_answers(main_here, folder, checkpoint, *args):
    write_pictures(folder)
    entries = [
        {"image": "a.png", "text": f"question {n}", "says": says, "label": label,
         "category": "ab"[n % 2]}
        for n, (says, label) in enumerate(QUESTIONS)
    ]  # fmt: skip
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, entries)))
    config = {
        "task": "answer",
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        "model": {"model_path": str(checkpoint), "max_new_tokens": 2},
        "data": {"question_json": "q.jsonl"},
        "writer": {"output_dir": "out"},
        "variants": {"baseline": {"dola": False}, "dola": {}},
    }
    (folder / "answers.yaml").write_text(yaml.safe_dump(config))
    return main_here(folder, "evaluate", "--config", "answers.yaml", *args)


@pytest.mark.slow
def test_answers_are_scored_by_their_labels(main_here, tmp_path, tiny_checkpoint, said):
    done = evaluate_answers(main_here, tmp_path, tiny_checkpoint)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    rates = report["rates"]["dola"]
    assert rates["a"]["mean"] == pytest.approx(2 / 3, abs=1e-5)  # questions 0, 2 and 4
    assert rates["b"]["mean"] == pytest.approx(1 / 2)
    assert report["differences"]["dola"]["overall"]["mean"] == 0
    # said yes: 3, right yes: 3, both: 2
    expected = (3 / 5, 2 / 3, 2 / 3, 2 / 3, 3 / 5)
    names = ("accuracy", "precision", "recall", "F1", "yes ratio")
    assert report["pope"]["dola"] == pytest.approx(dict(zip(names, expected)))
    page = (tmp_path / "out/report.md").read_text()
    assert page.startswith("# 2 variants, 5 answers each")
    assert "intervals over questions" in page
    assert "answer by answer on the same noise" in page
    assert "| `dola` | 60.0 | 66.7 | 66.7 | 66.7 | 60.0 |" in page
    for name in ("baseline", "dola"):
        lines = [json.loads(line) for line in (tmp_path / "out" / name / "answers.jsonl").open()]
        assert [line["settings"]["dola"] for line in lines] == [name == "dola"] * 5


@pytest.mark.slow
def test_the_task_may_come_from_a_flag_or_the_environment(
    main_here, tmp_path, tiny_checkpoint, said, monkeypatch
):
    done = evaluate_answers(main_here, tmp_path, tiny_checkpoint, "--task=rank")
    assert done.returncode == 2
    assert "'max_new_tokens'" in done.stderr
    config = yaml.safe_load((tmp_path / "answers.yaml").read_text())
    del config["task"]
    (tmp_path / "answers.yaml").write_text(yaml.safe_dump(config))
    done = main_here(tmp_path, "evaluate", "--config=answers.yaml", "--task", "answer")
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("LIT_DOLA_EVALUATE__TASK", "answer")
    done = main_here(tmp_path, "evaluate", "--config=answers.yaml")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_rankings_are_scored_by_their_labels(main_here, tmp_path):
    make_siglip(tmp_path / "siglip")
    write_pictures(tmp_path)
    labels = ["a red circle", "two squares", "a cross"]
    items = [
        {"image": image, "labels": labels, "label": label}
        for image in ("a.png", "b.png", "c.jpg")
        for label in (1, "a red circle")
    ]
    (tmp_path / "items.json").write_text(json.dumps(items))
    config = {
        "task": "rank",
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        "model": {"model_path": "siglip"},
        "data": {"item_json": "items.json"},
        "writer": {"output_dir": "out"},
        "variants": {"baseline": {"dola": False}, "dola": {"alpha": 0.0, "layer": 1}},
    }
    (tmp_path / "ranks.yaml").write_text(yaml.safe_dump(config))
    done = main_here(tmp_path, "evaluate", "--config=ranks.yaml")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    for name in ("baseline", "dola"):
        lines = [json.loads(line) for line in (tmp_path / "out" / name / "ranks.jsonl").open()]
        right = [line["order"][0] == (1 if line["label"] == 1 else 0) for line in lines]
        assert report["rates"][name]["overall"]["mean"] == pytest.approx(fmean(right), abs=1e-5)
    assert "pope" not in report
