"""Writes captions of training pictures: ``python -m recipes.shapes.captions FILE COUNT``."""

import json
from pathlib import Path

from jsonargparse import auto_cli

from recipes.shapes.data import ShapesDataset

_SEED = 4242


def write_captions(path: Path, count: int) -> None:
    """Write a prompt file of the training combinations, none of which the study asks for.

    Args:
        path: The file, JSON.
        count: Captions; some are alike.
    """
    pictures = ShapesDataset(0, count, _SEED)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([pictures[place][1] for place in range(count)]), encoding="utf-8")


if __name__ == "__main__":
    auto_cli(write_captions)
