"""Every number of docs/study.md, as Markdown.

python -m recipes.shapes.study.tables outputs/study
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from lit_dola.messages import label
from lit_dola.reports.intervals import Estimate
from lit_dola.reports.scores import OVERALL, differences, p_value, rates, show_p
from recipes.shapes.study.choose import GUIDANCE
from recipes.shapes.study.common import Variant, percent, table, told, variants_of
from recipes.shapes.study.lens_tables import print_lens_chapters

RIVALS = ("baseline", "top_p", "top_k", "min_p", "entropy_temperature")
DOLA = ("head_set", "dola", "plain_contrast", "defaults")


def main(folder: Path) -> None:
    """Print all tables."""
    headline = variants_of(folder / "headline")
    print("## Held-out prompts\n")
    print(table(_headline(headline)))
    for weight in GUIDANCE:
        print(f"\n## Guidance {weight}, held-out prompts\n")
        print(table(_parts(headline, weight)))
    print("\n## Skills, held-out prompts\n")
    print(table(_skills([headline[name] for name in ("baseline", *DOLA[:3])])))
    for name, title, rows, columns in SCREENED:
        print(f"\n## {title}, tuning prompts\n")
        print(_screened(list(variants_of(folder / name).values()), rows, columns))
    print_lens_chapters(folder)
    for name, title in TASKS.items():
        report = json.loads((folder / name / "report.json").read_text("utf-8"))
        print(f"\n## {title}\n")
        print(table(_task(report)))
    lines = (folder / "pictures" / "questions.jsonl").read_text("utf-8").splitlines()
    print("\n## The most frequent answer of each skill\n")
    print(table(_chance([json.loads(line) for line in lines])))


TASKS = {
    "answers": "Answers to questions about held-out pictures",
    "lens_answers": "The same questions, layers read through a lens of the text head",
    "ranks": "The right one of eight captions, by the SigLIP",
    "likelihood": "The right one of eight captions, by Janus' likelihood",
    "yes_no": "The right one of eight captions, by Janus' yes",
}
"""Evaluations of answers and rankings."""
SCREENED: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("strength", "Strength, alpha and guidance", ("cfg_weight", "strength"), "alpha"),
    ("plain", "The same without mid_norm", ("cfg_weight", "strength"), "alpha"),
    ("temperature", "Strength at temperature 0.8", ("strength",), "cfg_weight"),
    ("layers", "Layers", ("strength",), "layer"),
    ("policies", "Head-set policies", ("strength",), "apc"),
    ("baseline", "The baseline", ("temperature",), "cfg_weight"),
    ("top_p", "Top-p", ("top_p",), "cfg_weight"),
    ("top_k", "Top-k", ("top_k",), "cfg_weight"),
    ("min_p", "Min-p", ("min_p",), "cfg_weight"),
    ("entropy_temperature", "Temperature by entropy", ("entropy_temperature",), "cfg_weight"),
)
"""Evaluations of the tuning half: what the rows of their tables are, and the columns."""


def _headline(found: dict[str, Variant]) -> Iterator[list[str]]:
    yield ["", "settings", "percent right", "more than the baseline", "p"]
    reference = found["baseline"].scores
    for name in (*RIVALS, *DOLA):
        variant = found[name]
        cells = ["", ""]
        if name != "baseline":
            gained = differences(variant.scores, reference)[OVERALL]
            cells = [percent(gained, "+"), show_p(p_value(variant.scores, reference))]
        yield [name, told(variant), percent(rates(variant.scores)[OVERALL]), *cells]


def _parts(found: dict[str, Variant], weight: int) -> Iterator[list[str]]:
    """Take the gain at one guidance scale apart: the head set, then the contrast."""
    baseline, head_set, dola, plain = (
        found[f"{name}-at-{weight}"] for name in ("baseline", "head_set", "dola", "plain_contrast")
    )
    yield ["", "settings", "percent right", "more than", "difference", "p"]
    yield ["baseline", told(baseline), percent(rates(baseline.scores)[OVERALL]), "", "", ""]
    for name, variant, reference in (
        ("head_set", head_set, baseline),
        ("dola", dola, head_set),
        ("dola", dola, baseline),
        ("plain_contrast", plain, baseline),
    ):
        yield [
            name,
            told(variant),
            percent(rates(variant.scores)[OVERALL]),
            reference.name.removesuffix(f"-at-{weight}"),
            percent(differences(variant.scores, reference.scores)[OVERALL], "+"),
            show_p(p_value(variant.scores, reference.scores)),
        ]


def _skills(variants: list[Variant]) -> Iterator[list[str]]:
    yield ["skill", *(variant.name for variant in variants)]
    by_variant = [rates(variant.scores) for variant in variants]
    for skill in by_variant[0]:
        yield [skill, *(percent(found[skill]) for found in by_variant)]


def _task(report: dict[str, Any]) -> Iterator[list[str]]:
    """Rates by skill, and what each variant of a task gains."""
    *skills, overall = report["rates"][report["reference"]]
    yield ["", *skills, overall, "more than the baseline", "p"]
    for name, found in report["rates"].items():
        cells = ["", ""]
        if name != report["reference"]:
            gained = Estimate(**report["differences"][name][OVERALL])
            cells = [percent(gained, "+"), show_p(report["p"][name])]
        by_skill = [f"{100 * found[skill]['mean']:.1f}" for skill in skills]
        yield [name, *by_skill, percent(Estimate(**found[OVERALL])), *cells]


def _chance(questions: list[dict[str, str]]) -> Iterator[list[str]]:
    """Share of questions that a constant answer gets right."""
    yield ["skill", "questions", "answer", "percent"]
    for skill in dict.fromkeys(question["tag"] for question in questions):
        labels = Counter(question["label"] for question in questions if question["tag"] == skill)
        ((answer, times),) = labels.most_common(1)
        share = f"{100 * times / labels.total():.1f}"
        yield [skill, str(labels.total()), answer, share]


def _screened(variants: list[Variant], rows: Sequence[str], columns: str) -> str:
    """Rates by the settings that vary; what all share stands above the table."""
    by_values = {
        tuple(label(variant.settings[key]) for key in (*rows, columns)): variant.rate
        for variant in variants
    }
    values: list[list[Any]] = [list(dict.fromkeys(column)) for column in zip(*by_values)]
    header = [*rows, *(f"{columns} {value}" for value in values[-1])]
    lines = [header]
    for row in product(*values[:-1]):
        found = [by_values.get((*row, column)) for column in values[-1]]
        lines.append([*row, *("" if rate is None else f"{100 * rate:.1f}" for rate in found)])
    shared = told(variants[0], leave_out=(*rows, columns))
    return (f"{shared}\n\n" if shared else "") + table(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
