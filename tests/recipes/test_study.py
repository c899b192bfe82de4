"""The study: its configurations can run, and its tables and choices are right."""

import json
import re
import shutil
import subprocess
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml

from lit_dola import JanusPipeline, LitDoLa
from lit_dola.evaluation.variants import all_variants, make_variants
from lit_dola.janus.lens import LensFile
from lit_dola.reports.scores import OVERALL, rates
from lit_dola.tasks.answer import LitAnswer
from lit_dola.tasks.rank import LitRank
from recipes.shapes.study import choose, common, experiments, figure, lens_tables, tables
from recipes.shapes.study.common import Variant, variants_of
from tests.support.commands import ROOT

STUDY = ROOT / "recipes/shapes/study"
EVALUATIONS = sorted(
    path
    for path in STUDY.glob("*.yaml")
    if "variants:" in path.read_text() or "grid:" in path.read_text()
    if "task:" not in path.read_text()
)
"""Those of images, on the tuning prompts."""
SKILLS = ("colors", "counting")


def read(path):
    return yaml.safe_load(path.read_text())


def changes_of(own):
    return all_variants(own.get("variants", {}), own.get("grid", {}))


@pytest.mark.slow
@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_every_variant_is_valid_and_depends_on_no_recommendation(path):
    shared, own = read(STUDY / "common.yaml"), read(path)
    assert set(LitDoLa.recommendable) <= set(shared["model"])
    defaults = LitDoLa().hparams
    assert all(shared["model"][name] == defaults[name] for name in LitDoLa.recommendable)
    model = LitDoLa.checked({**shared["model"], **own.get("model", {})})
    assert len(make_variants(model, changes_of(own))) >= 5
    assert own["writer"]["output_dir"] == f"outputs/study/{path.stem}"
    script = (STUDY / "study.sh").read_text().replace("\\\n", "")
    *_, names = re.findall(r"printf '%s\\n' (.+) \|", script)
    assert path.stem in names.split()


def test_tuning_and_held_out_prompts_are_the_two_halves():
    prompts = (ROOT / "recipes/shapes/prompts.jsonl").read_text().splitlines()
    tags = [json.loads(line)["tag"] for line in prompts]
    script = (STUDY / "study.sh").read_text()
    for rest, name in ((1, "tuning"), (0, "held_out")):
        command = f"awk 'NR % 2 == {rest}' recipes/shapes/prompts.jsonl"
        assert f"{command} > outputs/study/{name}.jsonl" in script
        half = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
        chosen = [json.loads(line)["tag"] for line in half.stdout.splitlines()]
        assert {tag: chosen.count(tag) for tag in chosen} == dict.fromkeys(tags, 20)


def write_variant(folder, settings, right, images=1):
    """The files of a scored variant; ``right`` says how many of ten prompts per skill are right.

    Of several images of a prompt only the first can be right.
    """
    folder.mkdir(parents=True)
    defaults = {name: LitDoLa().hparams[name] for name in ("dola", "lens", *LitDoLa.recommendable)}
    with (folder / "metadata.jsonl").open("w") as log, (folder / "scores.jsonl").open("w") as out:
        for prompt, image in product(range(20), range(images)):
            file = f"{prompt:05}_p/img_{image:02}.png"
            tag = SKILLS[prompt // 10]
            line = {
                "file_name": file, "prompt": "p", "prompt_index": prompt, "image_index": image,
                "metadata": {"tag": tag}, **defaults, "layer": 8, **settings,
            }  # fmt: skip
            print(json.dumps(line), file=log)
            score = float(prompt % 10 < right and image == 0)
            print(json.dumps({"file_name": file, "score": score}), file=out)


def write_ranks(folder, even, odd=None):
    """Rankings of the images of 20 prompts, by the scores of even and of odd ones."""
    folder.mkdir(parents=True)
    with (folder / "ranks.jsonl").open("w") as log:
        for prompt in range(20):
            line = {
                "prompt_index": prompt, "prompt": "p", "image": [], "labels": ["p"],
                "item_index": prompt, "pictures": [], "order": [*range(len(even))],
                "scores": odd if odd and prompt % 2 else even, "settings": {},
            }  # fmt: skip
            print(json.dumps(line), file=log)


@pytest.fixture
def study(tmp_path):
    """A study whose rates are made up: the best of each evaluation is known."""
    best = {
        "baseline": {"cfg_weight": 2, "temperature": 0.8},
        "top_p": {"cfg_weight": 3, "top_p": 0.9},
        "top_k": {"cfg_weight": 3, "top_k": 10},
        "min_p": {"cfg_weight": 3, "min_p": 0.1},
        "entropy_temperature": {"cfg_weight": 2, "entropy_temperature": [1, 1, 0.6]},
        "strength": {"cfg_weight": 5, "strength": 0.2, "alpha": 0.02},
        "one_row": {"alpha": 0.002},
        "readout": {"layer": 8, "mid_norm": True},
        "guide": {"alpha": 0.005, "beta": 1.5},
        "two_rows": {"beta": 0.5, "layer": 5},
    }
    for path in EVALUATIONS:
        own = read(path)
        found = changes_of(own)
        for name, changes in found.items():
            right = 9 if changes == best.get(path.stem) else 3
            settings = {**own.get("model", {}), **changes}
            write_variant(tmp_path / path.stem / name, settings, right)
        (tmp_path / path.stem / "report.json").write_text(json.dumps({"variants": found}))
    return tmp_path, best


@pytest.mark.slow
def test_the_best_of_each_family_is_chosen_and_told(study, capsys):
    folder, best = study
    choose.main(folder, "headline")
    printed = capsys.readouterr().out
    chosen = yaml.safe_load(printed)
    assert chosen["reference"] == "baseline"
    variants = chosen["variants"]
    for name in ("baseline", "top_p", "top_k", "min_p", "entropy_temperature"):
        assert best[name].items() <= variants[name].items(), name
        assert not variants[name]["dola"]
        assert f"# {name}: " in printed
    assert best["strength"].items() <= variants["dola"].items()
    assert variants["dola-at-5"] == variants["dola"]
    for weight, (name, low, high) in product(
        (2, 5, 8), [("head_set", 0, 0), ("dola", 0.1, 0.9), ("plain_contrast", 1, 1)]
    ):
        found = variants[f"{name}-at-{weight}"]
        assert found["cfg_weight"] == weight
        assert low <= found["strength"] <= high
    assert variants["defaults"] == {}
    make_variants(LitDoLa(), variants)  # each can run


@pytest.mark.slow
def test_the_best_lens_is_chosen_and_what_it_is_compared_with(study, capsys):
    folder, best = study
    choose.main(folder, "lens")
    chosen = yaml.safe_load(capsys.readouterr().out)
    variants = chosen["variants"]
    assert chosen["reference"] == "one_row"
    assert best["guide"].items() <= variants["lens"].items()
    assert best["one_row"].items() <= variants["head_set"].items()
    assert best["readout"].items() <= variants["normed"].items()
    assert best["two_rows"].items() <= variants["guided_lens"].items()
    assert best["baseline"].items() <= variants["guided_baseline"].items()
    assert (variants["one_row"]["alpha"], variants["one_row"]["temperature"]) == (0, 1)
    assert variants["raw"]["mid_norm"] is False
    assert variants["lensed_dola"]["contrast"] == "dola"
    assert [name for name, it in variants.items() if it["lens"]] == [
        "lens", "guided_lens", "lensed_dola",
    ]  # fmt: skip
    models = make_variants(LitDoLa(), variants)  # each can run
    rows = {name: 1 + model.scoring.uses_guidance for name, model in models.items()}
    assert rows == {name: lens_tables.ROWS.get(name, 2) for name in variants}
    choose.main(folder, "equal_cost")
    assert yaml.safe_load(capsys.readouterr().out)["variants"] == {
        name: variants[name] for name in ("head_set", "lens")
    }


def test_the_better_of_two_images_is_the_one_that_the_siglip_prefers(tmp_path):
    """Of 20 prompts, 7 of ten have a right first image, which the SigLIP prefers if it is even."""
    write_variant(tmp_path / "lens", {}, 7, images=4)
    (tmp_path / "report.json").write_text(json.dumps({"variants": {"lens": {}}}))
    write_ranks(tmp_path / "ranks/lens", [0.5, 0.4, 0.1, None], [0.3, 0.4, 0.9, 0.1])
    better = lens_tables.better_of_two(tmp_path, "lens")
    assert [score[1:3] for score in better] == [*product(range(20), range(2))]
    expected = {(prompt, 0) for prompt in range(0, 20, 2) if prompt % 10 < 7}
    assert {score[1:3] for score in better if score.right} == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "replaced"),
    [
        (
            {"contrast": "guide", "cfg_weight": 1.0},
            lambda lens: patch(
                "lit_dola.decoding.step.race", experiments.race_with(torch.ones_like, 144)
            ),
        ),
        (
            {"contrast": "dola", "cfg_weight": 2.0, "strength": 0.5},
            lambda lens: patch.object(
                LensFile, "readout", lambda *_: experiments.PerBranch(lens, lens)
            ),
        ),
    ],
    ids=["beta", "branches"],
)
def test_an_experiment_that_changes_nothing_draws_the_same_tokens(settings, replaced):
    pipeline = JanusPipeline.from_pretrained(common.CHECKPOINT)
    lens = LensFile.open(Path(common.LENS)).readout(3, torch.float32, torch.device("cpu"))
    settings = {**settings, "lens": common.LENS, "layer": 3, "alpha": 0.005, "parallel_size": 2}
    prompt = "two green squares and a large blue triangle"
    own = pipeline.generate([prompt], **settings)
    with replaced(lens):
        found = pipeline.generate([prompt], **settings)
    np.testing.assert_array_equal(found.tokens, own.tokens)


def test_each_branch_is_read_by_its_own_lens():
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    states = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    read = experiments.PerBranch(first, second)(states)
    for row, state in enumerate(states):
        torch.testing.assert_close(read[row], (second if row % 2 else first)(state))


def write_task_reports(folder):
    """Reports of ``evaluate`` about answers and rankings, shortened."""

    def estimate(mean, low, high):
        return {"mean": mean, "low": low, "high": high, "prompts": 40}

    rates = {
        "once": {"color": estimate(0.5, 0.4, 0.6), "count": estimate(0.7, 0.6, 0.8)},
        "twice": {"color": estimate(0.7, 0.6, 0.8), "count": estimate(0.6, 0.5, 0.7)},
    }
    rates["once"][OVERALL] = estimate(0.6, 0.5, 0.7)
    rates["twice"][OVERALL] = estimate(0.65, 0.55, 0.75)
    report = {
        "reference": "once",
        "rates": rates,
        "differences": {"twice": {OVERALL: estimate(0.05, -0.01, 0.09)}},
        "p": {"twice": 0.03},
    }
    for name in tables.TASKS:
        (folder / name).mkdir()
        (folder / name / "report.json").write_text(json.dumps(report))
    (folder / "pictures").mkdir()
    questions = [{"tag": "size", "label": label} for label in ("small", "large", "small")]
    text = "".join(json.dumps(question) + "\n" for question in questions)
    (folder / "pictures/questions.jsonl").write_text(text)


@pytest.mark.parametrize("name", tables.TASKS)
def test_the_variants_of_answers_and_rankings_are_valid(name):
    own = read(STUDY / f"{name}.yaml")
    task = {"answer": LitAnswer, "rank": LitRank}[own["task"]]
    model = task.checked(own["model"])
    found = make_variants(model, own["variants"])
    assert next(iter(found)) == own["reference"] == "baseline"
    assert not found["baseline"].dola
    assert own["writer"]["output_dir"] == f"outputs/study/{name}"
    assert f"printf '%s\\n' {' '.join(tables.TASKS)} |" in (STUDY / "study.sh").read_text()


@pytest.mark.slow
def test_the_tables_have_the_rates(study, capsys):
    folder, _ = study
    for part in ("headline", "lens"):
        choose.main(folder, part)
        variants = yaml.safe_load(capsys.readouterr().out)["variants"]
        for number, (name, settings) in enumerate(variants.items()):
            write_variant(folder / part / name, settings, number % 10)
        (folder / f"{part}/report.json").write_text(json.dumps({"variants": variants}))
    variants = choose.choose(folder, choose.headline())
    pairs = {"head_set": {}, "lens": {}}
    for name, right in (("head_set", 4), ("lens", 6)):
        write_variant(folder / "equal_cost" / name, {}, right, images=8)
        write_ranks(folder / "equal_cost/ranks" / name, [0.5, 0.4, *[None] * 6])
    (folder / "equal_cost/report.json").write_text(json.dumps({"variants": pairs}))
    (folder / "lenses").mkdir()
    for name in ("pictures", "longer", "prompted"):
        shutil.copy(ROOT / common.LENS, folder / f"lenses/{name}.safetensors")
    entropy = {
        f"{name}/{variant}": 0.2
        for name in ("one_row", "guide")
        for variant in variants_of(folder / name)
    }
    (folder / "entropy.json").write_text(json.dumps(entropy))
    (folder / "experiments.json").write_text(json.dumps({"beta 2 to 0": 0.6}))
    write_task_reports(folder)
    capsys.readouterr()
    figure.main(folder)
    assert {"study.svg", "lens.svg"} <= {path.name for path in folder.iterdir()}
    tables.main(folder)
    printed = capsys.readouterr().out
    for part in ("headline", "lens"):
        for number, variant in enumerate(variants_of(folder / part).values()):
            assert f"{100 * rates(variant.scores)[OVERALL].mean:.1f} (" in printed
            assert variant.rate == number % 10 / 10
    assert "| 5.0 | 0.2 | 30.0 | 30.0 | 90.0 | 30.0 | 30.0 |" in printed.replace("| 5 |", "| 5.0 |")
    assert printed.count("\n## ") == 27
    assert "| 8 | 2.44 | 0.27 | 0.06 | 30.0 | 90.0 | 30.0 |" in printed
    assert "| lens, layer 3, alpha 0.005, cfg_weight 1, beta 1.5 | 0.200 | 90.0 |" in printed
    assert "| trained twice as long | 0.315 | 30.0 |" in printed
    assert "| beta 2 to 0 |  | 60.0 |" in printed
    assert "| lens, layer 5, alpha 0.005, strength 1, cfg_weight 2 | 30.0 |" in printed
    assert "| lens, better of two | 15.0 (" in printed  # the first of four pairs, 60 % of them
    assert "| size | 3 | small | 66.7 |" in printed
    assert "| twice | 70.0 | 60.0 | 65.0 (55.0 to 75.0) | +5.0 (-1.0 to +9.0) | 0.03 |" in printed
    assert isinstance(next(iter(variants_of(folder / "strength").values())), Variant)
