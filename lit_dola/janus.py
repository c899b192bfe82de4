"""Loading Janus, and the little of it that generation needs.

The backbone is transformers' own Janus, from either checkpoint layout; DeepSeek's package is a
second backend for who has it installed (:mod:`lit_dola.deepseek`). No class of either is edited.
"""

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaModel

from lit_dola.checkpoint import load_config, load_weights
from lit_dola.decoding import Backbone
from lit_dola.errors import UserError
from lit_dola.tiny import make_tiny_janus


class Variant(NamedTuple):
    """A published Janus: its names on the hub. Sizes come from the checkpoint's config."""

    original: str
    transformers: str | None


VARIANTS = {
    "Janus-1.3B": Variant("deepseek-ai/Janus-1.3B", None),
    "Janus-Pro-1B": Variant("deepseek-ai/Janus-Pro-1B", "deepseek-community/Janus-Pro-1B"),
    "Janus-Pro-7B": Variant("deepseek-ai/Janus-Pro-7B", "deepseek-community/Janus-Pro-7B"),
}
"""The short names that ``model.model_path`` knows; each stands for DeepSeek's own checkpoint."""

TINY_JANUS = Path("checkpoints/tiny-janus")
"""Where the embedded tiny Janus, ``model.model_path: tiny-janus``, is made when it is not there."""


class JanusBackbone(Backbone, Protocol):
    """A loaded Janus: what the token loop needs, and the VQ decoder."""

    model: nn.Module
    vq_model: nn.Module

    def decode_image_tokens(self, tokens: Tensor) -> Tensor:
        """VQ decoder: int64 ``(images, num_image_tokens)`` to ``(images, 3, height, width)``.

        Pixels are in [-1, 1], save for what the decoder overshoots.
        """

    def restore_float32_buffers(self) -> None:
        """Undo a cast of the rotary frequencies to the model's dtype.

        transformers keeps them in float32 whatever the model's dtype, since a position is found
        by multiplying them; casting a module as a whole, as Lightning's true half precision does,
        rounds them.
        """


class TransformersJanus(nn.Module):
    """transformers' Janus, less what generation never touches.

    Args:
        config: Config of the model.
        pad_token_id: Token that stands for the prompt in the unconditional branch.

    The weights are on the meta device until :func:`lit_dola.checkpoint.load_weights` fills them.
    """

    def __init__(self, config: JanusConfig, pad_token_id: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.model = JanusForConditionalGeneration(config)
        del self.model.lm_head, self.model.model.vision_model, self.model.model.aligner
        del self.model.model.vqmodel.encoder, self.model.model.vqmodel.quant_conv
        self.language_model = self.model.model.language_model
        self.gen_head = self.model.model.generation_head
        self.vision_head = self.gen_head.vision_head
        self.vq_model = self.model.model.vqmodel
        self.num_image_tokens = config.vision_config.num_image_tokens
        self.pad_token_id = pad_token_id
        self.eval().requires_grad_(False)

    def head_features(self, hidden_states: Tensor) -> Tensor:
        """See :class:`lit_dola.decoding.Backbone`."""
        return self.gen_head.activation_fn(self.gen_head.proj_out(hidden_states))

    def embed_image_tokens(self, tokens: Tensor) -> Tensor:
        """See :class:`lit_dola.decoding.Backbone`."""
        return self.model.prepare_embeddings_for_image_generation(tokens)

    def decode_image_tokens(self, tokens: Tensor) -> Tensor:
        """See :class:`JanusBackbone`."""
        return self.vq_model.decode(tokens)

    def restore_float32_buffers(self) -> None:
        """See :class:`JanusBackbone`."""
        restore_rotary_frequencies(self.language_model)


def restore_rotary_frequencies(language_model: LlamaModel) -> None:
    """Compute the rotary frequencies of a Llama anew, in float32, on its weights' device."""
    rotary = type(language_model.rotary_emb)
    with language_model.embed_tokens.weight.device:
        language_model.rotary_emb = rotary(config=language_model.config)


def quantize_int8(janus: Backbone) -> None:
    """Keep the weights that a step reads as int8, in place, by torchao; the arithmetic stays.

    Raises:
        UserError: If torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise UserError(
            'model.quantize: torchao is not installed; pip install -e ".[quantize]"'
        ) from None
    for part in (janus.language_model, janus.gen_head):
        quantize_(part, Int8WeightOnlyConfig())


def load_janus(
    checkpoint: Path,
    *,
    pad_token_id: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: Literal["transformers", "deepseek"] = "transformers",
) -> JanusBackbone:
    """Load what generation needs of a Janus checkpoint, in either layout.

    Args:
        checkpoint: Folder of the checkpoint, see :func:`find_checkpoint`.
        pad_token_id: Token that stands for the prompt in the unconditional branch.
        dtype: Floating dtype of the weights.
        device: Device of the weights.
        backend: Whose code runs the model.

    Raises:
        UserError: If the checkpoint is not whole, or the backend is not there.
    """
    device = torch.device(device)
    janus: JanusBackbone
    if backend == "deepseek":
        from lit_dola.deepseek import load_deepseek_janus

        janus = load_deepseek_janus(
            checkpoint, pad_token_id=pad_token_id, dtype=dtype, device=device
        )
    else:
        config, original = load_config(checkpoint)
        janus = TransformersJanus(config, pad_token_id)
        load_weights(janus.model, checkpoint, original=original, dtype=dtype, device=device)
        janus.restore_float32_buffers()
    if device.type == "cuda":  # the memory format that tensor cores convolve in
        janus.vq_model.to(memory_format=torch.channels_last)
    return janus


def find_checkpoint(model_path: str) -> Path:
    """Folder of a checkpoint: a local one, or one fetched from the Hugging Face hub.

    Args:
        model_path: A folder, a name of :data:`VARIANTS`, a name on the hub, or ``tiny-janus``.

    Raises:
        UserError: If there is no such folder, and it cannot be had from the hub.
    """
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        return folder
    if model_path == TINY_JANUS.name:
        if not TINY_JANUS.is_dir():
            make_tiny_janus(TINY_JANUS)
        return TINY_JANUS
    repo_id = VARIANTS[model_path].original if model_path in VARIANTS else model_path
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")):
        raise UserError(
            f"model.model_path: no folder {model_path!r}; expected the folder of a Janus"
            f" checkpoint, a name on the hub, or one of {', '.join([*VARIANTS, TINY_JANUS.name])}"
        )
    patterns = ["*.json", "*.jinja", "*.safetensors", "pytorch_model*.bin"]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.model_path: {model_path!r} is neither a local folder nor to be had from the"
            f" hub ({type(error).__name__}: {reason}); give the folder of a downloaded checkpoint"
        ) from error
