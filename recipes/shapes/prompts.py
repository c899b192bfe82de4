"""Writes the prompts of the evaluation: ``python -m recipes.shapes.prompts``."""

import json
import random
from pathlib import Path

from recipes.shapes.scene import SKILLS, describe, sample_scene

PROMPTS = Path(__file__).with_name("prompts.jsonl")


def held_out_prompts(per_skill: int = 40, seed: int = 0) -> list[str]:
    """Return lines of a prompt file in GenEval's form, of held-out combinations.

    Args:
        per_skill: Prompts per skill, all with different wordings.
        seed: Seed of the choice.
    """
    rng = random.Random(seed)
    lines: list[str] = []
    for skill in SKILLS:
        found: dict[str, str] = {}
        while len(found) < per_skill:
            scene = sample_scene(rng, "held_out", skill)
            prompt = describe(scene, rng)
            found.setdefault(prompt, json.dumps({**scene.metadata(), "prompt": prompt}))
        lines += found.values()
    return lines


if __name__ == "__main__":
    PROMPTS.write_text("\n".join(held_out_prompts()) + "\n", encoding="utf-8")
