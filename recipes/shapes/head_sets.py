"""What DoLa's head sets leave out: ``python -m recipes.shapes.head_sets checkpoints/shapes-janus``.

Real pictures are read token by token, each predicted from the prompt and those before it. A picture
that has a token outside its head set cannot be drawn, whatever the contrast says.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from lit_dola.decoding.loop import pad_left
from lit_dola.janus.tokenizer import PromptEncoder
from recipes.shapes.data import ShapesDataset, collate
from recipes.shapes.language import image_logits
from recipes.shapes.vq import encode_pictures

ALPHAS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5)


@torch.no_grad()
def predict_tokens(checkpoint: str, pictures: int) -> tuple[Tensor, Tensor]:
    """Distributions of the image tokens of pictures, and the tokens.

    Args:
        checkpoint: Folder of a Janus in transformers' layout.
        pictures: How many; their combinations are those of the training.

    Returns:
        Float32 ``(pictures, num_image_tokens, codes)``, and int64 ``(pictures, num_image_tokens)``.
    """
    janus = JanusForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    encoder = PromptEncoder(Path(checkpoint))
    batch = collate([ShapesDataset(0, pictures, seed=99)[place] for place in range(pictures)])
    tokens = encode_pictures(janus.model.vqmodel, batch.pixel_values)
    input_ids, mask = pad_left([encoder.encode(p) for p in batch.prompts], encoder.pad_token_id)
    return image_logits(janus, input_ids, mask, tokens).softmax(dim=-1), tokens


def main(checkpoint: str, pictures: int = 200) -> str:
    """How sure the model is, and a Markdown table, a row an alpha."""
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
