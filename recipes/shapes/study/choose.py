"""Choose the settings of the headline rows from the tuning half of the prompts.

    python -m recipes.shapes.study.choose outputs/study headline > outputs/study/headline.yaml

Also ``lens``, the rows of the chapters on lenses, and ``equal_cost``, two of them. Each family is
represented by the variant with the highest rate; of equal ones, by the first. The output is a
configuration of ``evaluate``, which runs them on the held-out half.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from recipes.shapes.study.common import Variant, variants_of

GUIDANCE = (2, 5, 8)
"""Guidance scales at which the parts of DoLa are told apart."""
Settings = dict[str, Any]
Belongs = Callable[[Settings], bool]


Families = Iterator[tuple[str, str, Belongs]]
"""The name of each family, the evaluation that it is chosen from, and its members."""


def headline() -> Families:
    """Yield the families of the headline."""
    yield "baseline", "baseline", lambda s: True
    for rival in ("top_p", "top_k", "min_p", "entropy_temperature"):
        yield rival, rival, lambda s: True
    parts: dict[str, Belongs] = {
        "head_set": lambda s: s["strength"] == 0 and s["alpha"] > 0,
        "dola": lambda s: 0 < s["strength"] < 1,
        "plain_contrast": lambda s: s["strength"] == 1,
    }
    for name, belongs in parts.items():
        yield name, "strength", belongs
    for weight in GUIDANCE:
        for name, belongs in parts.items():
            yield f"{name}-at-{weight}", "strength", _at(weight, belongs)


def lens() -> Families:
    """Yield the families of the chapters on lenses, those of one row per image first."""
    yield "one_row", "one_row", lambda s: s["alpha"] == 0
    yield from equal_cost()
    yield "raw", "readout", lambda s: not s["lens"] and not s["mid_norm"]
    yield "normed", "readout", lambda s: not s["lens"] and s["mid_norm"]
    for name, family, belongs in headline():
        if name in ("baseline", "head_set"):
            yield f"guided_{name}", family, belongs
    yield "guided_lens", "two_rows", lambda s: s["contrast"] == "guide"
    yield "lensed_dola", "two_rows", lambda s: s["contrast"] == "dola"


def equal_cost() -> Families:
    """Yield the families of one row per image that are also drawn twice as often."""
    yield "head_set", "one_row", lambda s: s["alpha"] > 0 and s["temperature"] == 1
    yield "lens", "guide", lambda s: True


PARTS: dict[str, Callable[[], Families]] = {
    "headline": headline, "lens": lens, "equal_cost": equal_cost,
}  # fmt: skip
"""The families of each configuration."""


def _at(weight: int, belongs: Belongs) -> Belongs:
    return lambda s: s["cfg_weight"] == weight and belongs(s)


def choose(folder: Path, families: Families) -> dict[str, Settings]:
    """Return the best settings of each family, and print their rates as comments."""
    evaluations: dict[str, dict[str, Variant]] = {}
    chosen: dict[str, Settings] = {}
    for name, evaluation, belongs in families:
        if evaluation not in evaluations:
            evaluations[evaluation] = variants_of(folder / evaluation)
        members = [v for v in evaluations[evaluation].values() if belongs(v.settings)]
        best = max(members, key=lambda variant: variant.rate)
        chosen[name] = best.settings
        print(f"# {name}: {best.name}, {100 * best.rate:.1f} %, the best of {len(members)}")
    return chosen


def main(folder: Path, part: str) -> None:
    """Print the configuration, with what was chosen and its rate as comments."""
    chosen = choose(folder, PARTS[part]())
    reference = next(iter(chosen))
    if part == "headline":
        for weight in GUIDANCE:
            chosen[f"baseline-at-{weight}"] = {"dola": False, "cfg_weight": weight}
        chosen["defaults"] = {}
    variants = {"variants": chosen, "reference": reference}
    print(yaml.safe_dump(variants, sort_keys=False), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
