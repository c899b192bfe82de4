"""Loading a checkpoint into a model, with either backend."""

from typing import Literal, TypeVar

import torch
from transformers.models.llama.modeling_llama import LlamaModel

from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.deepseek import load_deepseek_janus
from lit_dola.janus.model import Backbone, ImageBackbone, TransformersJanus
from lit_dola.janus.packing import unpack_weights
from lit_dola.janus.quantization import Quantization, quantize_weights
from lit_dola.janus.understanding import UnderstandingJanus
from lit_dola.janus.weights import load_weights

LANGUAGE_MODEL = "model.language_model."
"""Prefix of the names of the language model's weights."""
Backend = Literal["transformers", "deepseek"]
Model = TypeVar("Model", TransformersJanus, UnderstandingJanus)


def load_janus(
    checkpoint: Checkpoint,
    *,
    pad_token_id: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: Backend = "transformers",
    quantize: Quantization | None = None,
    encodes: bool = False,
) -> ImageBackbone:
    """Load the parts of a Janus checkpoint that image generation needs.

    Args:
        checkpoint: The checkpoint, in either layout.
        pad_token_id: Token that replaces the prompt in the unconditional branch.
        dtype: Floating dtype of the weights.
        device: Device of the weights.
        backend: Package whose code runs the model.
        quantize: How to store the weights of the linear layers in fewer bits; None: not at all.
        encodes: Load the VQ encoder, too; only with the backend transformers.

    Raises:
        UserError: If the checkpoint is incomplete, the backend is not available, or the weights
            cannot be quantized.

    Example:
        >>> checkpoint = Checkpoint.open("checkpoints/shapes-janus")
        >>> pad = PromptEncoder(checkpoint.folder).pad_token_id
        >>> janus = load_janus(checkpoint, pad_token_id=pad)
    """
    device = torch.device(device)
    first = torch.device("cpu") if quantize else device
    janus: ImageBackbone
    if backend == "deepseek":
        janus = load_deepseek_janus(
            checkpoint, pad_token_id=pad_token_id, dtype=dtype, device=first
        )
    else:
        janus = _build(TransformersJanus, checkpoint, pad_token_id, encodes=encodes)
        load_weights(janus.model, checkpoint, janus.unused, dtype=dtype, device=first)
        janus.fill_buffers()
    _finish(janus, quantize, device)
    _arrange(janus)
    return janus


def load_understanding(
    checkpoint: Checkpoint,
    *,
    pad_token_id: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantize: Quantization | None = None,
    language_model: LlamaModel | None = None,
) -> UnderstandingJanus:
    """Load the parts of a Janus checkpoint that answering questions about pictures needs.

    Args:
        checkpoint: As :func:`load_janus`.
        pad_token_id: Token that stands for a picture where none is to be seen.
        dtype: As :func:`load_janus`.
        device: As :func:`load_janus`.
        quantize: As :func:`load_janus`; not with ``language_model``.
        language_model: A loaded one of the same checkpoint, to share; None: load it.

    Raises:
        UserError: As :func:`load_janus`.
    """
    device = torch.device(device)
    first = torch.device("cpu") if quantize else device
    janus = _build(UnderstandingJanus, checkpoint, pad_token_id)
    unused: tuple[str, ...] = UnderstandingJanus.unused
    if language_model is not None:
        janus.use_language_model(language_model)
        unused += (LANGUAGE_MODEL,)
    load_weights(janus.model, checkpoint, unused, dtype=dtype, device=first)
    janus.fill_buffers()
    _finish(janus, quantize, device)
    return janus


def move_model(janus: Backbone, device: torch.device) -> None:
    """Move a loaded model to a device, as if it had been loaded there.

    Args:
        janus: The model; weights that are packed for a CPU are unpacked.
        device: The device.
    """
    unpack_weights(janus)
    weight = janus.language_model.embed_tokens.weight
    janus.model.to(device, weight.dtype)
    janus.restore_float32()
    _arrange(janus)


def _arrange(janus: Backbone) -> None:
    """On a GPU, give the VQ decoder the memory format in which tensor cores convolve fastest."""
    vq_model = getattr(janus, "vq_model", None)
    if vq_model is not None and janus.language_model.embed_tokens.weight.device.type == "cuda":
        vq_model.to(memory_format=torch.channels_last)


def _build(
    model_class: type[Model], checkpoint: Checkpoint, pad_token_id: int, **parts: bool
) -> Model:
    """Build a model without its weights."""
    try:
        janus = model_class(checkpoint.config, pad_token_id, **parts)
        janus.try_shapes()
    except Exception as error:  # transformers raises any exception for an unexpected value
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise UserError(
            f"{checkpoint.folder / 'config.json'}: no Janus can be built of it:"
            f" {type(error).__name__}: {reason}"
        ) from error
    return janus


def _finish(janus: Backbone, quantize: Quantization | None, device: torch.device) -> None:
    """Quantize the weights, if set."""
    if quantize:
        quantize_weights(janus, quantize, device)
        janus.model.to(device)
    janus.restore_float32()
