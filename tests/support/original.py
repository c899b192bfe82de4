"""DeepSeek's original checkpoint layout, from its published description.

Names and shapes of every weight, and small checkpoints made from them, independent of the package
except for the tokenizer: the renaming is tested against them.
"""

import json

import torch
from safetensors.torch import save_file

from recipes.small_janus import make_tokenizer

LLAMA = {
    "Janus-1.3B": (2048, 5632, 24, 16),
    "Janus-Pro-1B": (2048, 5632, 24, 16),
    "Janus-Pro-7B": (4096, 11008, 30, 32),
}
"""Hidden size, intermediate size, layers, heads."""


def published_config(name):
    """``config.json`` of a published checkpoint; that of 7B omits Llama's defaults."""
    hidden, intermediate, layers, heads = LLAMA[name]
    config = make_config(hidden, intermediate, layers, heads, vocab_size=102400, image_size=384)
    language = config["language_config"]
    language["max_position_embeddings"] = 16384
    if name == "Janus-Pro-7B":
        for default in ("hidden_size", "intermediate_size", "num_attention_heads"):
            del language[default]
        del language["num_key_value_heads"]
    else:
        language["_attn_implementation"] = "flash_attention_2"
    return config


def make_config(hidden, intermediate, layers, heads, *, vocab_size, image_size):
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "torch_dtype": "bfloat16",
        "language_config": {
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            "vocab_size": vocab_size,
        },
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": image_size,
                "model_name": "siglip_large_patch16_384",
                "select_feature": "same",
                "select_layer": -1,
            },
        },
        "aligner_config": {
            "cls": "MlpProjector",
            "model_type": "aligner",
            "params": {
                "depth": 2, "input_dim": 1024, "n_embed": hidden, "projector_type": "mlp_gelu",
            },
        },
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": {"image_token_size": 16384, "n_embed": 8},
        },
        "gen_aligner_config": {
            "cls": "MlpProjector",
            "model_type": "gen_aligner",
            "params": {
                "depth": 2, "input_dim": 8, "n_embed": hidden, "projector_type": "mlp_gelu",
            },
        },
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {"image_token_embed": hidden, "image_token_size": 16384, "n_embed": hidden},
        },
    }  # fmt: skip


def linear(name, out_features, in_features):
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}


def norm(name, size):
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def conv(name, out_channels, in_channels, kernel):
    return {
        f"{name}.weight": (out_channels, in_channels, kernel, kernel),
        f"{name}.bias": (out_channels,),
    }


def llama_shapes(hidden, intermediate, layers, vocab_size):
    shapes = {
        "language_model.model.embed_tokens.weight": (vocab_size, hidden),
        "language_model.model.norm.weight": (hidden,),
        "language_model.lm_head.weight": (vocab_size, hidden),
    }
    for i in range(layers):
        layer = f"language_model.model.layers.{i}"
        for part in "qkvo":
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (hidden, hidden)
        for part in ("gate", "up"):
            shapes[f"{layer}.mlp.{part}_proj.weight"] = (intermediate, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, intermediate)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    return shapes


def image_token_shapes(hidden):
    return {
        "gen_embed.weight": (16384, 8),
        **linear("gen_aligner.layers.0", hidden, 8),
        **linear("gen_aligner.layers.2", hidden, hidden),
        **linear("gen_head.output_mlp_projector", hidden, hidden),
        **linear("gen_head.vision_head", 16384, hidden),
    }


def res_block(name, channels_in, channels_out):
    return {
        **norm(f"{name}.norm1", channels_in),
        **conv(f"{name}.conv1", channels_out, channels_in, 3),
        **norm(f"{name}.norm2", channels_out),
        **conv(f"{name}.conv2", channels_out, channels_out, 3),
        **(conv(f"{name}.nin_shortcut", channels_out, channels_in, 1)
           if channels_in != channels_out else {}),
    }  # fmt: skip


def attention_block(name, channels):
    shapes = norm(f"{name}.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{name}.{part}", channels, channels, 1)
    return shapes


def vq_half_shapes(half):
    """Encoder or decoder of VQ-16: five resolutions, attention at the coarsest."""
    name = f"gen_vision_model.{half}"
    widths = [128, 128, 256, 256, 512]
    if half == "decoder":
        widths, blocks, sample = widths[::-1], 3, "upsample"
        shapes = {**conv(f"{name}.conv_in", 512, 256, 3), **conv(f"{name}.conv_out", 3, 128, 3)}
        channels, coarsest, last = 512, 0, 128
    else:
        blocks, sample = 2, "downsample"
        shapes = {**conv(f"{name}.conv_in", 128, 3, 3), **conv(f"{name}.conv_out", 256, 512, 3)}
        channels, coarsest, last = 128, 4, 512
    shapes |= norm(f"{name}.norm_out", last)
    for level, width in enumerate(widths):
        for i in range(blocks):
            shapes |= res_block(f"{name}.conv_blocks.{level}.res.{i}", channels, width)
            channels = width
            if level == coarsest:
                shapes |= attention_block(f"{name}.conv_blocks.{level}.attn.{i}", width)
        if level != 4:
            shapes |= conv(f"{name}.conv_blocks.{level}.{sample}.conv", width, width, 3)
    shapes |= res_block(f"{name}.mid.0", 512, 512)
    shapes |= attention_block(f"{name}.mid.1", 512)
    shapes |= res_block(f"{name}.mid.2", 512, 512)
    return shapes


def vq_shapes():
    return {
        **vq_half_shapes("encoder"),
        **vq_half_shapes("decoder"),
        "gen_vision_model.quantize.embedding.weight": (16384, 8),
        "gen_vision_model.quantize.codebook_used": (65536,),
        **conv("gen_vision_model.quant_conv", 8, 256, 1),
        **conv("gen_vision_model.post_quant_conv", 256, 8, 1),
    }


def siglip_shapes(hidden, width=1024, blocks=24, places=576):
    """SigLIP, by default large, patch 16, 384 pixels; with its attention pooling and aligner."""
    name, mlp = "vision_model.vision_tower", 4 * width
    shapes = {
        f"{name}.pos_embed": (1, places, width),
        **conv(f"{name}.patch_embed.proj", width, 3, 16),
        **norm(f"{name}.norm", width),
        f"{name}.attn_pool.latent": (1, 1, width),
        **linear(f"{name}.attn_pool.q", width, width),
        **linear(f"{name}.attn_pool.kv", 2 * width, width),
        **linear(f"{name}.attn_pool.proj", width, width),
        **norm(f"{name}.attn_pool.norm", width),
        **linear(f"{name}.attn_pool.mlp.fc1", mlp, width),
        **linear(f"{name}.attn_pool.mlp.fc2", width, mlp),
        **linear("aligner.layers.0", hidden, width),
        **linear("aligner.layers.2", hidden, hidden),
    }
    for i in range(blocks):
        block = f"{name}.blocks.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width)
        shapes |= linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", mlp, width)
        shapes |= linear(f"{block}.mlp.fc2", width, mlp)
    return shapes


def published_shapes(name):
    """Every weight of a published checkpoint in the original layout."""
    hidden, intermediate, layers, _ = LLAMA[name]
    return {
        **llama_shapes(hidden, intermediate, layers, 102400),
        **image_token_shapes(hidden),
        **vq_shapes(),
        **siglip_shapes(hidden),
    }


SMALL_TOWER = {"hidden_size": 64, "num_hidden_layers": 3, "mlp_ratio": 4.0, "patch_size": 16}
"""Sizes of a vision tower for tests, as ``lit_dola.janus.checkpoint.TOWERS`` has them."""


def small_weights(config, task="generation"):
    """Random weights of a small model; those that a task must not use are NaN."""
    language = config["language_config"]
    hidden = language["hidden_size"]
    shapes = {
        **llama_shapes(
            hidden,
            language["intermediate_size"],
            language["num_hidden_layers"],
            language["vocab_size"],
        ),
        **image_token_shapes(hidden),
        **{name: shape for name, shape in vq_shapes().items() if ".encoder." not in name},
        **conv("gen_vision_model.encoder.conv_in", 128, 3, 3),
        **siglip_shapes(
            hidden, 64, 3, (config["vision_config"]["params"]["image_size"] // 16) ** 2
        ),
    }
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        if not _uses(task, name):
            weight = torch.full(shape, torch.nan)
        else:
            weight = torch.empty(shape).normal_(generator=generator)
            if len(shape) > 1:
                weight *= (3 if "vision_head" in name else 1) / weight[0].numel() ** 0.5
            elif name.endswith(".bias"):
                weight *= 0.1
            else:
                weight = 1 + 0.1 * weight
        weights[name] = weight.to(torch.bfloat16)
    return weights


def _uses(task, name):
    understands = name.startswith(("vision_model", "aligner", "language_model.lm_head"))
    if task == "understanding":
        return not name.startswith("gen_") and "attn_pool" not in name
    parts = ("encoder", ".quant_conv", "codebook_used")
    return not understands and not any(part in name for part in parts)


def write_config(folder, config):
    """Write everything except the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        "bos_token": "<｜begin▁of▁sentence｜>",
        "eos_token": "<｜end▁of▁sentence｜>",
        "pad_token": None,
    }
    files = {
        # as in the published file, although tokenizer.json is byte-level BPE
        "tokenizer_config": {**special, "tokenizer_class": "LlamaTokenizerFast"},
        "special_tokens_map": {"pad_token": "<｜▁pad▁｜>"},
        "processor_config": {
            "processor_class": "VLChatProcessor",
            "sft_format": "deepseek",
            "num_image_tokens": 576,
            "image_tag": "<image_placeholder>",
        },
        "preprocessor_config": {
            "image_processor_type": "VLMImageProcessor",
            "image_size": config["vision_config"]["params"]["image_size"],
            "background_color": [127, 127, 127],
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "min_size": 14,
            "rescale_factor": 1 / 255,
        },
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def write_weights(folder, weights, stem, shards=1):
    """Write weights as ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards."""
    save = save_file if stem == "model.safetensors" else torch.save
    if shards == 1:
        save(weights, folder / stem)
        return
    name, suffix = stem.split(".")
    weight_map, names = {}, list(weights)
    for i in range(shards):
        file = f"{name}-{i + 1:05}-of-{shards:05}.{suffix}"
        shard = {name: weights[name] for name in names[i::shards]}
        save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))
