"""Mean entropy of the distributions that tokens are drawn from, to compare settings equally sharp.

    python -m recipes.shapes.study.entropy outputs/study outputs/study/own

Writes ``entropy.json``. Every setting reads the same tokens: those of images that the small Janus
has drawn without any of them, in a run with ``writer.save_tokens``.
"""

import json
import sys
from itertools import islice
from pathlib import Path

import torch

from lit_dola import LitDoLa
from lit_dola.decoding.inspection import inspect_tokens
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.lens import LensFile
from lit_dola.janus.loading import load_janus
from lit_dola.janus.tokenizer import PromptEncoder, unconditional_ids
from lit_dola.runs.image_file import read_token_arrays, tokens_file
from lit_dola.runs.records import ImageRecord
from recipes.shapes.study.common import CHECKPOINT, LENS, variants_of

EVALUATIONS = ("one_row", "guide")
_IMAGES = 40


def entropies(folder: Path, run: Path) -> dict[str, float]:
    """Return the mean entropy in nats of each variant of the evaluations of one row per image.

    Args:
        folder: Folder of the study.
        run: Folder of the images.
    """
    checkpoint = Checkpoint.open(CHECKPOINT)
    encoder = PromptEncoder(checkpoint.folder)
    janus = load_janus(checkpoint, pad_token_id=encoder.pad_token_id)
    images = []
    for record in islice(ImageRecord.read(run), _IMAGES):
        ids = encoder.encode(record.prompt)
        tokens = torch.from_numpy(read_token_arrays(run / tokens_file(record.file_name))["tokens"])
        images.append(((ids, unconditional_ids(ids, encoder.pad_token_id)), tokens, record.key))
    found = {}
    for name in EVALUATIONS:
        for variant in variants_of(folder / name).values():
            settings = variant.settings
            lens, layer = settings["lens"], settings["layer"] or 1
            readout = lens and LensFile.open(Path(LENS)).readout(
                layer, torch.float32, torch.device("cpu")
            )
            scoring = LitDoLa(**{**settings, "lens": None}).scoring
            steps = [
                inspect_tokens(janus, scoring, layer, branches, tokens, key, readout).entropy_after
                for branches, tokens, key in images
            ]
            found[f"{name}/{variant.name}"] = float(torch.cat(steps).mean())
    return found


if __name__ == "__main__":
    folder, run = map(Path, sys.argv[1:3])
    found = entropies(folder, run)
    (folder / "entropy.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
