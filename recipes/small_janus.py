"""Making small Janus checkpoints: their config, tokenizer and files in transformers' layout.

:func:`make_random_janus` makes one with random weights within a second or two. It uses the same
classes and layout as the published checkpoints, but its images mean nothing; tests and benchmarks
use it. ``recipes.shapes`` trains one.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
ROLE_TOKENS = ("<|User|>", "<|Assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|User|>: ' if message.role | lower == 'user' else '<|Assistant|>: ' }}"
    "{% for part in message.content %}"
    "{{ '<image_placeholder>\n' if part.type == 'image' else part.text | trim }}"
    "{% endfor %}"
    "{{ '\n\n' if message.role | lower == 'user' else '<｜end▁of▁sentence｜>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)
_TEXT_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
VQ_CONFIG: dict[str, Any] = {
    "num_embeddings": 1024,
    "base_channels": 32,
    "latent_channels": 32,
    "channel_multiplier": [1, 1, 1, 2, 2],
    "num_res_blocks": 1,
}
_VISION_CONFIG = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_CORPUS = """\
a photo of a red apple on a wooden table in the morning light
two blue birds sitting on a branch above a green river
an old lighthouse at the edge of the sea under a stormy sky
a small robot painting a picture of a yellow house with a round window
the portrait of an astronaut riding a white horse through a desert, oil on canvas
three black cats and a brown dog sleeping next to a purple square and an orange circle
a bowl of noodles with chopsticks, seen from above, high detail, soft shadows
snow falling over a mountain village at night, warm lights in every window
"""


def make_tokenizer(
    texts: Iterable[str] = _CORPUS.splitlines(), vocab_size: int = 512
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, including Janus' special tokens.

    Args:
        texts: Texts to train it on.
        vocab_size: Number of tokens; fewer if the texts have too few different words.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL_TOKENS.values(), *ROLE_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    names = {name: SPECIAL_TOKENS[name] for name in ("bos_token", "eos_token", "pad_token")}
    extra = {name: SPECIAL_TOKENS[name] for name in ("image_token", "boi_token", "eoi_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=extra,
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        **names,
    )


def make_config(
    tokenizer: PreTrainedTokenizerFast,
    text_config: dict[str, Any],
    vq_config: dict[str, Any],
    image_size: int,
    vision_config: dict[str, Any] = _VISION_CONFIG,
) -> JanusConfig:
    """Return the config of a small Janus.

    Args:
        tokenizer: As :func:`make_tokenizer` returns it.
        text_config: Sizes of the language model, a Llama.
        vq_config: Sizes of the VQ tokenizer.
        image_size: Height and width of its images in pixels, a multiple of the pixels per token,
            which follow from ``channel_multiplier``.
        vision_config: Sizes of the vision tower, which uses patches of as many pixels.
    """
    hidden_size = text_config["hidden_size"]
    patch_size = 2 ** (len(vq_config["channel_multiplier"]) - 1)
    return JanusConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **text_config,
        },
        vision_config={
            **vision_config,
            "image_size": image_size,
            "patch_size": patch_size,
            "projection_dim": hidden_size,
            "num_image_tokens": (image_size // patch_size) ** 2,
        },
        vq_config={
            "projection_dim": hidden_size,
            "image_token_embed_dim": hidden_size,
            **vq_config,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS["image_token"]),
        tie_word_embeddings=False,
    )


def make_random_janus(
    folder: Path,
    seed: int = 0,
    image_size: int = 192,
    channel_multiplier: Sequence[int] = VQ_CONFIG["channel_multiplier"],
) -> None:
    """Make a checkpoint with random weights: config, weights, tokenizer and processor.

    Args:
        folder: Folder of the checkpoint; must not exist, or be empty.
        seed: Seed of the weights.
        image_size: Height and width of its images in pixels, a multiple of the pixels per token,
            by default 16.
        channel_multiplier: Width of each level of the VQ tokenizer; each level but the first
            halves the size.
    """
    tokenizer = make_tokenizer()
    vq_config = {**VQ_CONFIG, "channel_multiplier": [*channel_multiplier]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = make_config(tokenizer, _TEXT_CONFIG, vq_config, image_size)
        model = JanusForConditionalGeneration(config).eval()
        enliven(model)
    save_janus(model, tokenizer, folder)


def save_janus(
    model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Save a checkpoint in transformers' layout, in bfloat16, completely or not at all.

    Args:
        model: The model; its weights are cast in place.
        tokenizer: As :func:`make_tokenizer` returns it.
        folder: Folder of the checkpoint; must not exist, or be empty.
    """
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        generation_kwargs={
            "boi_token_id": tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS["boi_token"])
        },
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        unfinished = Path(temporary) / folder.name
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        _write_processor(unfinished, model.config)
        unfinished.replace(folder)


def enliven(model: nn.Module) -> None:
    """Draw weights wide enough for peaked distributions and images with contrast."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            fan_in = weight[0].numel()
            gain = 2.0 if "generation_head.vision_head" in name else 1.0
            nn.init.normal_(weight, std=gain / math.sqrt(fan_in))
        elif "norm" not in name:
            nn.init.zeros_(weight)


def _write_processor(folder: Path, config: JanusConfig) -> None:
    """Write the files that ``JanusProcessor.from_pretrained`` reads besides the tokenizer's."""
    size = config.vision_config.image_size
    image_processor = {
        "image_processor_type": "JanusImageProcessor",
        "size": {"height": size, "width": size},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "min_size": 14,
        "rescale_factor": 1 / 255,
    }
    processor = {
        "processor_class": "JanusProcessor",
        "num_image_tokens": config.vision_config.num_image_tokens,
        "use_default_system_prompt": True,
    }
    for name, content in (("preprocessor", image_processor), ("processor", processor)):
        text = json.dumps(content, indent=2) + "\n"
        (folder / f"{name}_config.json").write_text(text, encoding="utf-8")
