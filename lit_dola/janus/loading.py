"""Loading a checkpoint into a model, with either backend, and quantizing it."""

from typing import Literal

import torch

from lit_dola.errors import UserError, require
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.deepseek import load_deepseek_janus
from lit_dola.janus.model import Backbone, TransformersJanus
from lit_dola.janus.weights import load_weights

Backend = Literal["transformers", "deepseek"]


def load_janus(
    checkpoint: Checkpoint,
    *,
    pad_token_id: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: Backend = "transformers",
) -> Backbone:
    """Load the parts of a Janus checkpoint that image generation needs.

    Args:
        checkpoint: The checkpoint, in either layout.
        pad_token_id: Token that replaces the prompt in the unconditional branch.
        dtype: Floating dtype of the weights.
        device: Device of the weights.
        backend: Package whose code runs the model.

    Raises:
        UserError: If the checkpoint is incomplete, or the backend is not available.

    Example:
        >>> checkpoint = Checkpoint.open("checkpoints/shapes-janus")
        >>> pad = PromptEncoder(checkpoint.folder).pad_token_id
        >>> janus = load_janus(checkpoint, pad_token_id=pad)
    """
    device = torch.device(device)
    janus: Backbone
    if backend == "deepseek":
        janus = load_deepseek_janus(
            checkpoint, pad_token_id=pad_token_id, dtype=dtype, device=device
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
        load_weights(janus.model, checkpoint, dtype=dtype, device=device)
        janus.restore_float32_buffers()
    if device.type == "cuda":  # tensor cores convolve fastest in this memory format
        janus.vq_model.to(memory_format=torch.channels_last)
    return janus


def quantize_int8(janus: Backbone) -> None:
    """Store the weights that a decoding step reads as int8, in place; needs torchao.

    One scale per output channel. Matrix products still run in the model's dtype.

    Raises:
        UserError: If torchao is not installed.
    """
    require("torchao", "model.quantize", extra="quantize")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for part in (janus.language_model, janus.gen_head):
        quantize_(part, Int8WeightOnlyConfig())
