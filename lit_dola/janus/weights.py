"""Reading the weights of a Janus checkpoint in either layout, shard by shard.

Weights in transformers' layout are read as they are. Weights in DeepSeek's original layout are
renamed on the way from the file to the model: no copy on disk, no remote code, and never more in
memory than the model and one tensor.
"""

import re
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.files import read_json, refuse_pointer

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
_SAMPLE = 2048
"""Numbers at each end of a weight that are compared with its file."""
_NO_COUNTERPART = re.compile(
    r"^vision_model\.vision_tower\.attn_pool\."  # pooling that Janus leaves out
    r"|^gen_vision_model\.quantize\.codebook_used$"  # a usage statistic of training
    r"|\.rotary_emb\.inv_freq$"  # computed from the config
)


def rename_original(name: str) -> tuple[str, ...]:
    """Return transformers' names for a weight of DeepSeek's original layout.

    Usually one name; three names if one tensor holds query, key and value; none for the few
    tensors that transformers' Janus does not use.
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
    """Name a linear layer of an aligner; odd indices of the original are activations."""
    return "fc1" if index == 0 else f"hidden_layers.{index // 2 - 1}"


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    unused: tuple[str, ...],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Fill a model, built on the meta device, with the weights of a checkpoint.

    Args:
        model: transformers' Janus without the parts that a task does not use.
        checkpoint: The checkpoint.
        unused: What the names of the weights to leave alone start with, in transformers' layout.
        dtype: Floating dtype to load the weights in.
        device: Device to load the weights onto.
    """
    folder = checkpoint.folder
    original = checkpoint.layout == "multi_modality"
    expected = {
        name: tuple(weight.shape)
        for name, weight in model.state_dict().items()
        if not name.startswith(unused)
    }
    missing, left_over, misshapen = set(expected), [], []
    for file, names in weight_files(folder).items():
        weights = {}
        for source, name, tensor in _read_renamed(folder / file, names, original, unused, device):
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
        raise UserError(f"weights do not fit its config.json; {'; '.join(found)}", at=folder)


def samples_that_differ(
    model: nn.Module, checkpoint: Checkpoint, unused: tuple[str, ...], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Compare the first and the last numbers of a loaded model's weights with those of its files.

    Args:
        model: As :func:`load_weights` has filled it.
        checkpoint: As :func:`load_weights`.
        unused: As :func:`load_weights`.
        dtype: As :func:`load_weights`.

    Returns:
        By a weight's name in the model, the count of numbers that differ, a scalar on its device.
        Weights that are stored in another form, e.g. quantized ones, are left out.
    """
    original = checkpoint.layout == "multi_modality"
    loaded = {name: weight.detach() for name, weight in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for file, names in weight_files(checkpoint.folder).items():
        path = checkpoint.folder / file
        for _, name, tensor in _read_renamed(path, names, original, unused, torch.device("cpu")):
            weight = loaded.get(name)
            # torchao's tensors are made of others.
            if weight is not None and not hasattr(weight, "__tensor_flatten__"):
                sample = _ends(tensor).to(dtype).to(weight.device, weight.dtype)
                found[name] = (sample != _ends(weight)).sum()
    return found


def _read_renamed(
    path: Path,
    names: Collection[str] | None,
    original: bool,
    unused: tuple[str, ...],
    device: torch.device,
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield weights as :func:`_read_file`: name in the file, name in transformers, and tensor."""
    for source, whole in _read_file(path, names, original, unused, device):
        targets = rename_original(source) if original else (source,)
        for name, tensor in zip(targets, _split(whole, targets)):
            yield source, name, tensor


def _ends(tensor: Tensor) -> Tensor:
    numbers = tensor.flatten()
    return torch.cat([numbers[:_SAMPLE], numbers[-_SAMPLE:]])


def _split(tensor: Tensor, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Return the part of an original tensor for each of its names in transformers."""
    if len(names) > 1 and tensor.dim() > 0:  # query, key and value
        return tensor.chunk(len(names))
    if names[0].endswith("position_embedding.weight"):
        tensor = tensor.flatten(0, -2) if tensor.dim() > 1 else tensor  # it has a batch dimension
    return (tensor,) * len(names)


def _shorten(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def weight_files(folder: Path) -> dict[str, Collection[str] | None]:
    """List the weight files of a checkpoint folder.

    Returns:
        File name to the names of the weights to read from it; None: all of them.
    """
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(
                isinstance(file, str) for file in weight_map.values()
            ):
                raise UserError(
                    f"{index}: weight_map is {weight_map!r:.40}", "an object, weight -> file"
                )
            files: dict[str, Any] = {file: [] for file in sorted(set(weight_map.values()))}
            for name, file in weight_map.items():
                files[file].append(name)
            for file in files:
                if Path(file).name != file:
                    raise UserError(f"{index}: names {file!r}", "files of its own folder")
                if not (folder / file).is_file():
                    raise UserError(f"{folder / file}: not found, though {index.name} names it")
            return files
        if (folder / stem).is_file():
            return {stem: None}
    raise UserError(
        "no weights",
        "model.safetensors or pytorch_model.bin, whole or in shards with an index",
        at=folder,
    )


def _read_file(
    path: Path,
    names: Collection[str] | None,
    original: bool,
    unused: tuple[str, ...],
    device: torch.device,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of one file that a task needs, each read lazily."""

    def wanted(name: str) -> bool:
        targets = rename_original(name) if original else (name,)
        return bool(targets) and not targets[0].startswith(unused)

    refuse_pointer(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in names or file.keys():
                    if wanted(name):
                        yield name, file.get_tensor(name)
        else:
            weights = _unpickle(path)
            for name in names or weights:
                if wanted(name):
                    yield name, weights[name]
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"not readable as weights: {str(error).splitlines()[0]}", at=path
        ) from error
    except KeyError as error:
        raise UserError(f"weight {error} is missing, though the index names it", at=path) from error


def _unpickle(path: Path) -> dict[str, Tensor]:
    """Read a file of torch's own kind; it can hold tensors and nothing that runs."""
    try:
        weights = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # the unpickler may raise any exception for a broken file
        # torch's own message may advise to load it without this check: never pass that on.
        reason = "it holds something else than tensors" if "weights_only" in str(error) else error
        what = str(reason).splitlines()[0] if str(reason) else type(error).__name__
        raise UserError(
            f"not readable as weights: {what}", "a whole file of tensors", at=path
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()
    ):
        raise UserError("not readable as weights: expected an object, name -> tensor", at=path)
    return weights
