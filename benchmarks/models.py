"""A Janus of a chosen size with random weights, on which speed does not depend.

``python -m benchmarks.models 1b checkpoints/random-1b`` saves one as a checkpoint.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import nn
from transformers import GenerationConfig, JanusConfig

from lit_dola.decoding.scoring import Scoring
from lit_dola.janus.checkpoint import PUBLISHED_SIZES
from lit_dola.janus.model import TransformersJanus
from lit_dola.tasks.generate import LitDoLa
from recipes.small_janus import make_tokenizer, save_janus

Preset = Literal["tiny", "small", "1b", "7b"]
SIZES = {
    "tiny": (128, 256, 8, 4),
    "small": (768, 2048, 12, 12),  # about 100M parameters in the language model and gen_head
    "1b": PUBLISHED_SIZES["Janus-Pro-1B"],
    "7b": PUBLISHED_SIZES["Janus-Pro-7B"],
}
"""Hidden size, intermediate size, layers, heads."""
BOS, BOI, PAD = 0, 1, 2


def make_scoring(**settings: Any) -> Scoring:
    """Return settings that turn logits into a token, with the defaults of image generation."""
    return LitDoLa(**settings).scoring


def random_janus(
    preset: Preset, num_image_tokens: int, dtype: torch.dtype, device: torch.device
) -> TransformersJanus:
    """Return a Janus with the published codebook and VQ decoder, and so many image tokens."""
    hidden, intermediate, layers, heads = SIZES[preset]
    config = JanusConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": 102400 if preset in ("1b", "7b") else 1024,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 16384,
        },
        vision_config={
            "num_hidden_layers": 1,
            "image_size": 384,
            "projection_dim": hidden,
            "num_image_tokens": num_image_tokens,
        },
        vq_config={
            "num_embeddings": 16384,
            "projection_dim": hidden,
            "image_token_embed_dim": hidden,
        },
        tie_word_embeddings=False,
    )
    janus = TransformersJanus(config, pad_token_id=PAD)
    janus.to(dtype).to_empty(device=device)
    torch.manual_seed(0)
    for name, weight in janus.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        else:
            nn.init.constant_(weight, float("norm" in name and name.endswith("weight")))
    janus.restore_float32()
    set_transformers_length(janus, num_image_tokens)
    janus.model.generation_config = GenerationConfig(
        bos_token_id=BOS, pad_token_id=PAD, generation_kwargs={"boi_token_id": BOI}
    )
    return janus


def set_transformers_length(janus: TransformersJanus, tokens: int) -> None:
    """Set how many image tokens transformers' own ``generate`` draws.

    It reads the number from the vision tower, for which a stand-in is enough: our model has none.
    """
    config = SimpleNamespace(num_image_tokens=tokens)
    janus.model.model.vision_model = SimpleNamespace(config=config)


def random_prompts(count: int, length: int = 24) -> list[list[int]]:
    """Return token ids of prompts of one length, from BOS to begin-of-image."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(3, 1000, (count, length - 2), generator=generator).tolist()
    return [[BOS, *ids, BOI] for ids in words]


def save_random_janus(preset: Preset, folder: Path) -> None:
    """Save a checkpoint in bfloat16, with what ``main.py predict`` needs.

    Args:
        preset: Size; 1b and 7b take 3 and 13 GB.
        folder: Folder to create.
    """
    janus = random_janus(preset, 576, torch.bfloat16, torch.device("cpu"))
    del janus.model.model.vision_model
    save_janus(janus.model, make_tokenizer(), folder)


if __name__ == "__main__":
    auto_cli(save_random_janus)
