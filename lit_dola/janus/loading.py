"""Loading a checkpoint into a model, with either backend."""

from typing import Literal

import torch

from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.deepseek import load_deepseek_janus
from lit_dola.janus.model import Backbone, TransformersJanus, restore_rotary_frequencies
from lit_dola.janus.quantization import Quantization, quantize_weights
from lit_dola.janus.weights import load_weights

Backend = Literal["transformers", "deepseek"]


def load_janus(
    checkpoint: Checkpoint,
    *,
    pad_token_id: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: Backend = "transformers",
    quantize: Quantization | None = None,
) -> Backbone:
    """Load the parts of a Janus checkpoint that image generation needs.

    Args:
        checkpoint: The checkpoint, in either layout.
        pad_token_id: Token that replaces the prompt in the unconditional branch.
        dtype: Floating dtype of the weights.
        device: Device of the weights.
        backend: Package whose code runs the model.
        quantize: How to store the weights of the linear layers in fewer bits; None: not at all.

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
    janus: Backbone
    if backend == "deepseek":
        janus = load_deepseek_janus(
            checkpoint, pad_token_id=pad_token_id, dtype=dtype, device=first
        )
    else:
        try:
            janus = TransformersJanus(checkpoint.config, pad_token_id)
            janus.try_shapes()
        except Exception as error:  # whatever transformers makes of a value it did not expect
            reason = next(iter(str(error).strip().splitlines()), "no reason given")
            raise UserError(
                f"{checkpoint.folder / 'config.json'}: no Janus can be built of it:"
                f" {type(error).__name__}: {reason}"
            ) from error
        load_weights(janus.model, checkpoint, dtype=dtype, device=first)
    if quantize:
        restore_rotary_frequencies(janus.language_model)  # they are on no device yet
        quantize_weights(janus, quantize, device)
        janus.model.to(device)
    janus.restore_float32()
    if device.type == "cuda":  # tensor cores convolve fastest in this memory format
        janus.vq_model.to(memory_format=torch.channels_last)
    return janus
