"""Finding a Janus checkpoint, and reading its layout and config.

Two layouts exist: transformers' (``model_type: janus``) and DeepSeek's original one
(``model_type: multi_modality``), whose config is translated to transformers' here.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import isqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from huggingface_hub import hf_hub_download, snapshot_download
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from lit_dola.errors import UserError
from lit_dola.janus.files import read_json
from lit_dola.messages import first_line, printable
from lit_dola.settings.checks import given_path
from lit_dola.shipped import shipped

Layout = Literal["janus", "multi_modality"]
"""``model_type`` of transformers' layout and of DeepSeek's original one."""


class Variant(NamedTuple):
    """The names of a published Janus on the hub. Its sizes come from the checkpoint's config."""

    original: str
    transformers: str | None


VARIANTS = {
    "Janus-1.3B": Variant("deepseek-ai/Janus-1.3B", None),
    "Janus-Pro-1B": Variant("deepseek-ai/Janus-Pro-1B", "deepseek-community/Janus-Pro-1B"),
    "Janus-Pro-7B": Variant("deepseek-ai/Janus-Pro-7B", "deepseek-community/Janus-Pro-7B"),
}
"""Short names that ``model.model_path`` accepts; each stands for DeepSeek's own checkpoint."""


PUBLISHED_SIZES = {
    "Janus-1.3B": (2048, 5632, 24, 16),
    "Janus-Pro-1B": (2048, 5632, 24, 16),
    "Janus-Pro-7B": (4096, 11008, 30, 32),
}
"""Hidden size, intermediate size, layers and heads of their language models."""
GENERATION_CONFIG = "generation_config.json"
LENSES = "lens*.safetensors"
"""Names of lenses that may lie beside the weights."""
_COMMIT = re.compile("[0-9a-f]{40}")
_BLOCKS, _BLOCK = 256, 4096
"""Sample of a weight file for the fingerprint: maximum number of blocks, and bytes per block."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model that has layers to contrast."""

    name: str
    """Name given by the user: a folder, a hub name or a short name."""
    folder: Path

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the content: the commit on the hub, else a digest that reads little.

        The digest covers the small files as a whole, and of each weight file its size and a
        sample of blocks, the first and last included.
        """
        snapshot = self.folder.resolve()
        if snapshot.parent.name == "snapshots" and _COMMIT.fullmatch(snapshot.name):
            return snapshot.name
        digest = sha256()
        try:
            for path in sorted(path for path in snapshot.iterdir() if path.is_file()):
                # What it recommends is recorded by itself, and so is a lens.
                if path.name == GENERATION_CONFIG or path.match(LENSES):
                    continue
                if path.suffix in (".json", ".jinja"):
                    digest.update(f"{path.name}\0".encode() + path.read_bytes())
                elif path.suffix in (".safetensors", ".bin"):
                    _digest_sample(digest, path)
        except OSError as error:
            where = error.filename or snapshot
            raise UserError(f"not readable: {error.strerror or error}", at=where) from error
        return f"sha256:{digest.hexdigest()[:16]}"

    @property
    def num_layers(self) -> int:
        """Transformer layers; ``hidden_states`` has one entry more."""
        raise NotImplementedError

    def check_middle_layer(self, layer: int, setting: str) -> None:
        """Check that a layer comes before the final one.

        Raises:
            UserError: About the setting, if it does not.
        """
        if layer >= self.num_layers:
            raise UserError(
                f"{layer} is not a middle layer of {self.name}",
                f"1 to {self.num_layers - 1}, its final layer is {self.num_layers}",
                setting=setting,
            )


@dataclass(frozen=True)
class Checkpoint(ModelFolder):
    """A checkpoint folder and its ``config.json``.

    Example:
        >>> checkpoint = Checkpoint.open("checkpoints/shapes-janus")
        >>> checkpoint.layout, checkpoint.num_image_tokens
        ('janus', 144)
    """

    layout: Layout
    config: JanusConfig

    @classmethod
    def open(cls, model_path: str) -> "Checkpoint":
        """Find a checkpoint, fetching it from the hub if needed, and read its config.

        Args:
            model_path: A folder, a name on the hub, or one of :data:`VARIANTS`.

        Raises:
            UserError: If the checkpoint cannot be found or fetched, or its config is unusable.
        """
        folder = find_checkpoint(model_path)
        layout, config = read_config(folder)
        return cls(model_path, folder, layout, config)

    @property
    def num_layers(self) -> int:
        """Transformer layers of the language model; ``hidden_states`` has one entry more."""
        return int(self.config.text_config.num_hidden_layers)

    @cached_property
    def weights_digest(self) -> str:
        """Identifies the weights alone, wherever they lie: a digest that reads little."""
        digest = sha256()
        for path in sorted(self.folder.iterdir()):
            if path.suffix in (".safetensors", ".bin") and not path.match(LENSES):
                _digest_sample(digest, path)
        return f"sha256:{digest.hexdigest()[:16]}"

    @property
    def published(self) -> list[str]:
        """Names of the published models whose language model has these sizes."""
        text = self.config.text_config
        sizes = (
            text.hidden_size, text.intermediate_size, text.num_hidden_layers,
            text.num_attention_heads,
        )  # fmt: skip
        return [name for name, published in PUBLISHED_SIZES.items() if sizes == published]

    @property
    def num_image_tokens(self) -> int:
        """Tokens per image."""
        return int(self.config.vision_config.num_image_tokens)

    @property
    def image_side(self) -> int:
        """Pixels of each side of an image: every stage of the VQ decoder but one doubles them."""
        stages = len(self.config.vq_config.channel_multiplier)
        return int(isqrt(self.num_image_tokens) * 2 ** (stages - 1))

    @property
    def context_length(self) -> int:
        """Positions that the language model was built for."""
        return int(self.config.text_config.max_position_embeddings)


def _digest_sample(digest: Any, path: Path) -> None:
    """Add a file's name, its size, and evenly spaced blocks of its content."""
    size = path.stat().st_size
    digest.update(f"{path.name}\0{size}\0".encode())
    last = max(0, size - _BLOCK)
    with path.open("rb") as file:
        for number in range(_BLOCKS):
            file.seek(last * number // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))


def find_checkpoint(model_path: str) -> Path:
    """Return the folder of a checkpoint: a local one, or one fetched from the Hugging Face hub.

    Args:
        model_path: A folder, a name on the hub, or one of :data:`VARIANTS`.
    """
    given_path("model.model_path", model_path)  # refuses an empty one
    if printable(model_path) != model_path:  # what reads weights and tokenizers cannot open it
        raise UserError(
            f"{printable(model_path)} is not UTF-8", "UTF-8", setting="model.model_path"
        )
    if found := _local_folder(model_path):
        return found
    repo_id = VARIANTS[model_path].original if model_path in VARIANTS else model_path
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")):
        raise UserError(
            f"no folder {model_path!r}",
            f"the folder of a Janus checkpoint, a name on the hub, or one of {', '.join(VARIANTS)}",
            setting="model.model_path",
        )
    patterns = ["*.json", "*.jinja", "*.safetensors", "pytorch_model*.bin"]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except Exception as error:  # its client raises any exception for a proxy, an address, a token
        reason = first_line(error)
        raise UserError(
            f"{model_path!r} is not a local folder, and it could not be fetched from the hub"
            f" ({type(error).__name__}: {reason})",
            "the folder of a downloaded checkpoint, or access to the hub",
            setting="model.model_path",
        ) from error


def _local_folder(model_path: str) -> Path | None:
    """Return an existing folder, or one that comes with the package; None if there is none."""
    folder = given_path("model.model_path", model_path)
    if folder.is_dir():
        return folder
    ours = shipped(model_path)
    return ours if ours and ours.is_dir() else None


def generation_config(model_path: str) -> tuple[Path, dict[str, Any]]:
    """Return a checkpoint's ``generation_config.json``: its path, and its content or ``{}``.

    Nothing else of the checkpoint is fetched, and nothing at all of a published Janus, which has no
    settings of ours. What is wrong with ``model_path`` is left to :func:`find_checkpoint`.
    """
    folder = _local_folder(model_path) or given_path("model.model_path", model_path)
    path = folder / GENERATION_CONFIG
    published = {name for variant in VARIANTS.values() for name in variant} | {*VARIANTS}
    if model_path.count("/") == 1 and model_path not in published and not path.parent.exists():
        try:
            path = Path(hf_hub_download(model_path, GENERATION_CONFIG))
        except Exception:  # as above; find_checkpoint reports it
            return path, {}
    return path, read_json(path)


def read_config(folder: Path) -> tuple[Layout, JanusConfig]:
    """Read a checkpoint's ``config.json``.

    Returns:
        The layout, and the config as transformers' own.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError("not found", "the folder of a Janus checkpoint", at=path)
    config = read_json(path)
    layouts: tuple[Layout, ...] = get_args(Layout)
    layout = next((layout for layout in layouts if layout == config.get("model_type")), None)
    if layout is None:
        raise UserError(
            f"model_type is {config.get('model_type')!r}",
            f"{layouts[0]!r} (transformers' layout) or {layouts[1]!r} (DeepSeek's)",
            at=path,
        )
    try:
        if layout == "janus":
            for part in _SIZES:
                if not isinstance(config[part], dict):
                    raise UserError(f"{part} is {config[part]!r:.40}", "an object")
            translated = JanusConfig.from_dict(config)
        else:
            translated = _translate_original(config)
        _check_sizes(translated)
    except KeyError as error:
        raise UserError(f"setting {error} is missing", at=path) from error
    except UserError as error:
        raise error.within(path) from error
    except Exception as error:  # transformers raises any exception for an unexpected value
        raise UserError(f"not readable as a Janus config: {error}", at=path) from error
    # A config may name an attention that needs another package; this one needs none.
    for part in (translated, translated.text_config, translated.vision_config):
        part._attn_implementation = "sdpa"
    return layout, translated


_SIZES = {
    "text_config": (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
    ),
    "vision_config": ("image_size", "patch_size", "num_image_tokens"),
    "vq_config": (
        "num_embeddings", "embed_dim", "latent_channels", "base_channels", "num_res_blocks",
        "projection_dim", "image_token_embed_dim",
    ),
}  # fmt: skip
"""Settings that must be positive, by part of the config."""
_COUNTS = re.compile("layers|blocks|depth")
"""Names of settings that count the repetitions of a part."""


def _check_sizes(config: JanusConfig) -> None:
    """Check the sizes that the model is built from."""
    for part, names in _SIZES.items():
        for name in names:
            value = getattr(getattr(config, part), name)
            if type(value) is not int or not 1 <= value < 2**31:
                raise UserError(f"{part}: {name} is {value!r:.40}", "a positive integer")
        for name, value in getattr(config, part).to_dict().items():
            if _COUNTS.search(name) and isinstance(value, int) and value > 1000:
                raise UserError(f"{part}: {name} is {value}", "at most 1000")
    vision = config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    if vision.num_image_tokens != tokens:
        raise UserError(
            f"vision_config: num_image_tokens is {vision.num_image_tokens}",
            f"{tokens}, the places of {vision.patch_size} pixels in an image of"
            f" {vision.image_size}",
        )


_SO400M = {"hidden_size": 1152, "num_hidden_layers": 27, "mlp_ratio": 3.7362, "patch_size": 14}
TOWERS: dict[str, dict[str, Any]] = {
    "siglip_large_patch16_384": {
        "hidden_size": 1024, "num_hidden_layers": 24, "mlp_ratio": 4.0, "patch_size": 16,
    },
    "siglip_so400m_patch14_384": _SO400M,
    "siglip_so400m_patch14_224": _SO400M,
}  # fmt: skip
"""Sizes of the vision towers that DeepSeek's configs name, from its ``siglip_vit.py``."""


def _tower(vision: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of the vision tower that an original config names, with 16 heads."""
    name = vision["model_name"]
    patch_size = int(match[1]) if (match := re.search(r"patch(\d+)", name)) else 16
    sizes = TOWERS.get(name, {"num_hidden_layers": 24, "patch_size": patch_size})
    layers, last = sizes["num_hidden_layers"], vision.get("select_layer", -1)
    return {**sizes, "num_hidden_layers": min(layers, last if last > 0 else layers + last + 1)}


def _translate_original(config: dict[str, Any]) -> JanusConfig:
    """Translate DeepSeek's config to transformers'; all sizes come from the checkpoint."""
    language = {
        key: value
        for key, value in config["language_config"].items()
        if not key.startswith("_") and key not in ("torch_dtype", "model_type")
    }
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
    image_size, tower = vision["image_size"], _tower(vision)
    return JanusConfig(
        text_config=LlamaConfig(**language),
        vision_config=JanusVisionConfig(
            image_size=image_size,
            num_image_tokens=(image_size // tower["patch_size"]) ** 2,
            projection_dim=aligner["n_embed"],
            depth=aligner["depth"],
            **tower,
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
