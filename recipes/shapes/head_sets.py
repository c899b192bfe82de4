"""Tokens outside DoLa's head sets: ``python -m recipes.shapes.head_sets checkpoints/shapes-janus``.

Real pictures are read token by token, each token predicted from the prompt and the earlier tokens.
A picture with a token outside its head set cannot be drawn, whatever the contrast is.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.janus.vq import encode_pixels
from recipes.shapes.data import ShapesDataset, collate
from recipes.shapes.language import image_logits, pad_left

ALPHAS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5)


@torch.no_grad()
def predict_tokens(checkpoint: str, pictures: int) -> tuple[Tensor, Tensor]:
    """Predict the image tokens of real pictures.

    Args:
        checkpoint: Folder of a Janus in transformers' layout.
        pictures: Number of pictures, with combinations of the training.

    Returns:
        Probabilities, float32 ``(pictures, num_image_tokens, codes)``, and the real tokens, int64
        ``(pictures, num_image_tokens)``.
    """
    janus = JanusForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    encoder = PromptEncoder(Path(checkpoint))
    batch = collate([ShapesDataset(0, pictures, seed=99)[place] for place in range(pictures)])
    tokens = encode_pixels(janus.model.vqmodel, batch.pixel_values)
    input_ids, mask = pad_left([encoder.encode(p) for p in batch.prompts], encoder.pad_token_id)
    return image_logits(janus, input_ids, mask, tokens).softmax(dim=-1), tokens


def main(checkpoint: str, pictures: int = 200) -> str:
    """Return how certain the model is, and a Markdown table with one row per alpha."""
    probabilities, tokens = predict_tokens(checkpoint, pictures)
    largest = probabilities.amax(dim=-1)
    drawn = probabilities.gather(-1, tokens[..., None])[..., 0]
    ground = tokens.flatten().mode().values
    begins = (tokens[:, 1:] != ground) & (tokens[:, :-1] == ground)
    rows = [
        f"Median of the largest probability: {largest.median():.2f}\n",
        "| alpha | tokens outside | where an object begins | pictures that can be drawn |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for alpha in ALPHAS:
        outside = drawn < alpha * largest
        shares = (outside, outside[:, 1:][begins], ~outside.any(dim=1))
        cells = [f"{100 * share.float().mean():.1f} %" for share in shares]
        rows.append(f"| {' | '.join([str(alpha), *cells])} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(main(sys.argv[1]))
