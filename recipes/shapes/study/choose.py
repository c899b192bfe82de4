"""Choose the settings of the headline rows from the tuning half of the prompts.

    python -m recipes.shapes.study.choose outputs/study > outputs/study/headline.yaml

Each family is represented by the variant with the highest rate; of equal ones, by the first. The
output is a configuration of ``evaluate``, which runs them on the held-out half.
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


def families() -> Iterator[tuple[str, str, Belongs]]:
    """Yield the name of each family, the evaluation that it is chosen from, and its members."""
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


def _at(weight: int, belongs: Belongs) -> Belongs:
    return lambda s: s["cfg_weight"] == weight and belongs(s)


def main(folder: Path) -> None:
    """Print the configuration, with what was chosen and its rate as comments."""
    evaluations: dict[str, dict[str, Variant]] = {}
    chosen: dict[str, Settings] = {}
    for name, evaluation, belongs in families():
        if evaluation not in evaluations:
            evaluations[evaluation] = variants_of(folder / evaluation)
        members = [v for v in evaluations[evaluation].values() if belongs(v.settings)]
        best = max(members, key=lambda variant: variant.rate)
        chosen[name] = best.settings
        print(f"# {name}: {best.name}, {100 * best.rate:.1f} %, the best of {len(members)}")
    for weight in GUIDANCE:
        chosen[f"baseline-at-{weight}"] = {"dola": False, "cfg_weight": weight}
    chosen["defaults"] = {}
    print(yaml.safe_dump({"variants": chosen, "reference": "baseline"}, sort_keys=False), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
