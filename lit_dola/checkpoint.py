"""Reading a Janus checkpoint in either layout: its config, and its weights shard by shard.

transformers' layout (``model_type: janus``) is read as it is. DeepSeek's original one
(``model_type: multi_modality``) is read by renaming each weight on its way from the file to the
model: no copy on disk, no remote code, never more in memory than the model and one tensor.
"""

import json
import re
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from lit_dola.errors import UserError

NOT_FOR_GENERATION = (
    "lm_head.",
    "model.vision_model.",
    "model.aligner.",
    "model.vqmodel.encoder.",
    "model.vqmodel.quant_conv.",
)
"""Weights, by their names in transformers, that image generation never touches."""

_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        # language model
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        # image tokens in and out
        (r"^gen_embed\.", "model.generation_embeddings."),
        (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
        (r"^gen_head\.", "model.generation_head."),
        (r"^gen_aligner\.", "model.generation_aligner."),
        (r"^aligner\.", "model.aligner."),
        # VQ tokenizer
        (r"^gen_vision_model\.", "model.vqmodel."),
        (r"^(model\.vqmodel\.encoder)\.conv_blocks\.(\d+)\.res\.", r"\1.down.\2.block."),
        (r"^(model\.vqmodel\.encoder)\.conv_blocks\.", r"\1.down."),
        (r"^(model\.vqmodel\.decoder)\.conv_blocks\.(\d+)\.res\.", r"\1.up.\2.block."),
        (r"^(model\.vqmodel\.decoder)\.conv_blocks\.", r"\1.up."),
        (r"^(model\.vqmodel\.\w+\.mid)\.0\.", r"\1.block_1."),
        (r"^(model\.vqmodel\.\w+\.mid)\.1\.", r"\1.attn_1."),
        (r"^(model\.vqmodel\.\w+\.mid)\.2\.", r"\1.block_2."),
        # SigLIP tower
        (r"^vision_model\.vision_tower\.blocks\.", "model.vision_model.encoder.layers."),
        (r"^vision_model\.vision_tower\.norm\.", "model.vision_model.post_layernorm."),
        (r"^vision_model\.vision_tower\.", "model.vision_model.embeddings."),
        (r"^(model\.vision_model\.embeddings)\.patch_embed\.proj\.", r"\1.patch_embedding."),
        (r"^(model\.vision_model\.embeddings)\.pos_embed$", r"\1.position_embedding.weight"),
        (r"^(model\.vision_model\..*)\.norm([12])\.", r"\1.layer_norm\2."),
        (r"^(model\.vision_model\..*)\.attn\.proj\.", r"\1.self_attn.projection_layer."),
        (r"^(model\.vision_model\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    ]
]
_NO_COUNTERPART = re.compile(
    r"^vision_model\.vision_tower\.attn_pool\."  # pooling that Janus leaves out
    r"|^gen_vision_model\.quantize\.codebook_used$"  # a usage statistic of training
    r"|\.rotary_emb\.inv_freq$"  # computed from the config
)


def rename_original(name: str) -> tuple[str, ...]:
    """Names in transformers of a weight of DeepSeek's original layout.

    One name as a rule; three where one tensor holds query, key and value; none for the few
    tensors that transformers' Janus has no use for.
    """
    if _NO_COUNTERPART.search(name):
        return ()
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    name = re.sub(
        r"^(model\.(?:generation_)?aligner)\.layers\.(\d+)\.",
        lambda match: f"{match[1]}.{_aligner_layer(int(match[2]))}.",
        name,
    )
    if ".self_attn.qkv." in name:
        return tuple(name.replace(".qkv.", f".{part}_proj.") for part in "qkv")
    return (name,)


def _aligner_layer(index: int) -> str:
    """Name of a linear layer of an aligner; the odd places of the original are activations."""
    return "fc1" if index == 0 else f"hidden_layers.{index // 2 - 1}"


def load_config(checkpoint: Path) -> tuple[JanusConfig, bool]:
    """Config of a checkpoint folder as transformers' own.

    Returns:
        The config, and whether the checkpoint is in DeepSeek's original layout.

    Raises:
        UserError: If ``config.json`` is missing, broken, or not of a Janus.
    """
    path = checkpoint / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model_type = config.get("model_type")
        if model_type == "janus":
            return JanusConfig.from_dict(config), False
        if model_type == "multi_modality":
            return _from_original(config), True
    except FileNotFoundError:
        raise UserError(f"{path}: not found; expected the folder of a Janus checkpoint") from None
    except KeyError as error:
        raise UserError(f"{path}: setting {error} is missing") from error
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not readable as a Janus config: {error}") from error
    raise UserError(
        f"{path}: model_type is {model_type!r}; expected 'janus' (transformers' layout) or"
        " 'multi_modality' (DeepSeek's)"
    )


def _from_original(config: dict[str, Any]) -> JanusConfig:
    """Transformers' config from DeepSeek's; all sizes come from the checkpoint's own."""
    language = {
        key: value
        for key, value in config["language_config"].items()
        if not key.startswith("_") and key not in ("torch_dtype", "model_type")
    }
    text_config = LlamaConfig(**language)
    vision = config["vision_config"]["params"]
    aligner = config["aligner_config"]["params"]
    codebook = config["gen_vision_config"]["params"]
    gen_aligner = config["gen_aligner_config"]["params"]
    head = config["gen_head_config"]["params"]
    if head["image_token_embed"] != gen_aligner["n_embed"]:
        raise ValueError(
            f"gen_head's image_token_embed is {head['image_token_embed']}; expected gen_aligner's"
            f" n_embed, {gen_aligner['n_embed']}"
        )
    patch_size = int(match[1]) if (match := re.search(r"patch(\d+)", vision["model_name"])) else 16
    image_size = vision["image_size"]
    return JanusConfig(
        text_config=text_config,
        vision_config=JanusVisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            num_image_tokens=(image_size // patch_size) ** 2,
            projection_dim=aligner["n_embed"],
            depth=aligner["depth"],
        ),
        vq_config=JanusVQVAEConfig(
            num_embeddings=codebook["image_token_size"],
            embed_dim=codebook["n_embed"],
            projection_dim=gen_aligner["n_embed"],
            num_hidden_layers=gen_aligner["depth"],
            image_token_embed_dim=head["n_embed"],
        ),
        tie_word_embeddings=False,
    )


def load_weights(
    model: nn.Module, checkpoint: Path, *, original: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """Fill a model, built on the meta device, with the weights of a checkpoint.

    Args:
        model: transformers' Janus less its parts in :data:`NOT_FOR_GENERATION`.
        checkpoint: Folder of the checkpoint.
        original: Whether its weights have DeepSeek's names.
        dtype: Floating dtype that the weights get.
        device: Device that the weights are put on.

    Raises:
        UserError: If weights are missing, left over or wrongly shaped, or a file is broken.
    """
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    missing, left_over, misshapen = set(expected), [], []
    for file, names in weight_files(checkpoint).items():
        weights = {}
        for source, tensor in _read_file(checkpoint / file, names, original, device):
            for name in rename_original(source) if original else (source,):
                if name not in missing:
                    left_over.append(source)
                elif tuple(tensor.shape) != expected[name]:
                    missing.remove(name)
                    misshapen.append(f"{source} {tuple(tensor.shape)}, expected {expected[name]}")
                else:
                    missing.remove(name)
                    weights[name] = tensor.to(device=device, dtype=dtype)
        model.load_state_dict(weights, strict=False, assign=True)
    problems = {
        "missing": sorted(missing),
        "left over": sorted(left_over),
        "wrongly shaped": sorted(misshapen),
    }
    found = [f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names]
    if found:
        raise UserError(f"{checkpoint}: weights do not fit its config.json; {'; '.join(found)}")


def _shorten(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def weight_files(checkpoint: Path) -> dict[str, Collection[str] | None]:
    """Weight files of a checkpoint, with the names that its index gives each (None: all in it).

    Raises:
        UserError: If there is no weight file, or a file that the index names is missing.
    """
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = checkpoint / f"{stem}.index.json"
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                files: dict[str, Any] = {file: [] for file in sorted(set(weight_map.values()))}
                for name, file in weight_map.items():
                    files[file].append(name)
            except (KeyError, ValueError, AttributeError, TypeError) as error:
                raise UserError(f"{index}: not readable as an index of weights: {error}") from error
            for file in files:
                if not (checkpoint / file).is_file():
                    raise UserError(f"{checkpoint / file}: not found, though {index.name} names it")
            return files
        if (checkpoint / stem).is_file():
            return {stem: None}
    raise UserError(
        f"{checkpoint}: no weights; expected model.safetensors or pytorch_model.bin, whole or in"
        " shards with an index"
    )


def _read_file(
    path: Path, names: Collection[str] | None, original: bool, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Weights of one file that generation needs, each read only when its turn comes."""

    def wanted(name: str) -> bool:
        targets = rename_original(name) if original else (name,)
        return bool(targets) and not targets[0].startswith(NOT_FOR_GENERATION)

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in names or file.keys():
                    if wanted(name):
                        yield name, file.get_tensor(name)
        else:
            weights = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
            for name in names or weights:
                if wanted(name):
                    yield name, weights[name]
    except (SafetensorError, UnpicklingError, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: not readable as weights: {str(error).splitlines()[0]}") from error
    except KeyError as error:
        raise UserError(f"{path}: weight {error} is missing, though the index names it") from error
