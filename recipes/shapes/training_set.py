"""Pictures to train lenses on: ``python -m recipes.shapes.training_set FOLDER COUNT``.

Their combinations are those of the training, none of which the study asks for. ``captions.jsonl``
has pictures with captions, for ``predict`` and ``lens``; ``questions.jsonl`` is for ``answer``.
"""

import random
from pathlib import Path

from jsonargparse import auto_cli

from lit_dola.janus.vq import to_pillow
from recipes.shapes.data import ShapesDataset
from recipes.shapes.pictures import questions_about, write_lines

_SEED = 4242


def write_training_set(folder: Path, count: int) -> None:
    """Write captioned pictures, and questions about them.

    Args:
        folder: Folder to write to.
        count: Pictures; some captions are alike.
    """
    dataset = ShapesDataset(0, count, _SEED)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    captions, questions = [], []
    for place in range(count):
        pixels, caption, objects, _ = dataset[place]
        file = f"pictures/{place:04}.png"
        to_pillow(((pixels + 1) * 127.5).round().byte()).save(folder / file)
        captions.append({"image": file, "prompt": caption})
        rng = random.Random(f"questions {_SEED}/{place}")
        questions += [{"image": file, **entry} for entry in questions_about(objects, rng)]
    write_lines(folder / "captions.jsonl", captions)
    write_lines(folder / "questions.jsonl", questions)


if __name__ == "__main__":
    auto_cli(write_training_set)
