"""The chapters of the study on lenses, as Markdown; :mod:`tables` prints them."""

import json
from collections.abc import Iterator
from pathlib import Path

from lit_dola.janus.lens import LensFile
from lit_dola.reports.scores import OVERALL, Score, differences, rates
from lit_dola.runs.ranks import RankRecord
from recipes.shapes.study.common import LENS, Variant, percent, table, told, variants_of

ROWS = {"head_set": 1, "raw": 1, "normed": 1, "lens": 1, "one_row": 1}
"""Rows per image of the chosen variants, if not two."""
TRIES = {
    "pictures": "trained on 3,000 pictures with captions",
    "longer": "trained twice as long",
    "prompted": "trained without the unconditional branch",
    "own-head-set-0.005": "head set of the contrast itself, alpha 0.005",
    "own-head-set-0.02": "head set of the contrast itself, alpha 0.02",
}


def print_lens_chapters(folder: Path) -> None:
    """Print the tables of the chapters on lenses."""
    chosen = variants_of(folder / "lens")
    chapters = {
        "The readout: divergence of a layer in nats, and percent right, tuning prompts": (
            _readouts(variants_of(folder / "readout"))
        ),
        "One row per image without a middle layer, tuning prompts": (
            _by_entropy(folder, "one_row")
        ),
        "The lensed layer 3 in one row, tuning prompts": _by_entropy(folder, "guide"),
        "Guidance and a lens, two rows, tuning prompts": _rates(variants_of(folder / "two_rows")),
        "Other lenses, and other ways to use one, tuning prompts": _tries(folder),
        "With and without a second row, held-out prompts": _chosen(chosen),
        "Equal cost, held-out prompts": _equal_cost(folder, chosen),
    }
    for title, rows in chapters.items():
        print(f"\n## {title}\n")
        print(table(rows))


def _readouts(found: dict[str, Variant]) -> Iterator[list[str]]:
    """Compare how the layers read with how well they guide."""
    yield [
        "layer", "raw, nats", "normed, nats", "lens, nats", "raw, % right", "normed, % right",
        "lens, % right",
    ]  # fmt: skip
    kl = LensFile.open(Path(LENS)).training["kl"]
    rate = {(_way(v), v.settings["layer"]): f"{100 * v.rate:.1f}" for v in found.values()}
    for layer, nats in kl.items():
        ways = ("raw", "norm", "lens")
        yield [
            layer, *(f"{nats[way]:.2f}" for way in ways),
            *(rate.get((way, int(layer)), "") for way in ways),
        ]  # fmt: skip


def _way(variant: Variant) -> str:
    settings = variant.settings
    return "lens" if settings["lens"] else "norm" if settings["mid_norm"] else "raw"


def _by_entropy(folder: Path, evaluation: str) -> Iterator[list[str]]:
    """Compare variants with how sharp they are."""
    entropy = json.loads((folder / "entropy.json").read_text("utf-8"))
    yield ["settings", "mean entropy, nats", "percent right"]
    for name, variant in variants_of(folder / evaluation).items():
        nats = entropy[f"{evaluation}/{name}"]
        yield [told(variant), f"{nats:.3f}", f"{100 * variant.rate:.1f}"]


def _rates(found: dict[str, Variant]) -> Iterator[list[str]]:
    yield ["settings", "percent right"]
    for variant in found.values():
        yield [told(variant), f"{100 * variant.rate:.1f}"]


def _tries(folder: Path) -> Iterator[list[str]]:
    """Compare what was tried with the lens of the small Janus, all of layer 3."""
    yield ["", "lens, nats", "percent right"]
    lens = variants_of(folder / "readout")["lens-3"]
    yield ["the lens that comes along", _nats(Path(LENS)), f"{100 * lens.rate:.1f}"]
    for name, variant in variants_of(folder / "tries").items():
        path = Path(variant.settings["lens"])
        path = path if path == Path(LENS) else folder / "lenses" / path.name
        yield [TRIES[name], _nats(path), f"{100 * variant.rate:.1f}"]
    experiments = json.loads((folder / "experiments.json").read_text("utf-8"))
    for title, rate in experiments.items():
        yield [title, "", f"{100 * rate:.1f}"]


def _nats(path: Path) -> str:
    return f"{LensFile.open(path).training['kl']['3']['lens']:.3f}"


def _chosen(found: dict[str, Variant]) -> Iterator[list[str]]:
    """Compare what was chosen with the head set in one row, and with guidance in two."""
    yield [
        "", "settings", "rows", "percent right", "more than head_set", "more than guided_baseline"
    ]  # fmt: skip
    for name, variant in found.items():
        gained = [
            ""
            if name == other
            else percent(differences(variant.scores, found[other].scores)[OVERALL], "+")
            for other in ("head_set", "guided_baseline")
        ]
        rate = percent(rates(variant.scores)[OVERALL])
        yield [name, told(variant), str(ROWS.get(name, 2)), rate, *gained]


def _equal_cost(folder: Path, found: dict[str, Variant]) -> Iterator[list[str]]:
    """Compare the better one of two images in one row each with one image in two."""
    names = ("head_set", "lens")
    better = {name: better_of_two(folder / "equal_cost", name) for name in names}
    yield ["", "percent right", *(f"better of two of {name}: more" for name in names)]
    for name, scores in better.items():
        yield [f"{name}, better of two", percent(rates(scores)[OVERALL]), "", ""]
    for name in (*names, "guided_baseline", "guided_head_set"):
        scores = found[name].scores
        more = (percent(differences(each, scores)[OVERALL], "+") for each in better.values())
        yield [f"{name}, one image", percent(rates(scores)[OVERALL]), *more]


def better_of_two(folder: Path, name: str) -> list[Score]:
    """Return the score of the better image of each pair, as the small SigLIP judges them.

    Images 0 and 1 of a prompt compete for its image 0, images 2 and 3 for image 1, and so on.

    Args:
        folder: Folder of the evaluation, and of the rankings of its images.
        name: The variant.
    """
    right = {score[1:3]: score for score in variants_of(folder)[name].scores}
    found = []
    for record in RankRecord.read(folder / "ranks" / name):
        prompt = record.metadata["prompt_index"]
        likeness = [-1.0 if score is None else score for score in record.scores]
        for pair in range(len(likeness) // 2):
            best = max((2 * pair, 2 * pair + 1), key=lambda image: likeness[image])
            found.append(right[prompt, best]._replace(image_index=pair))
    return found
