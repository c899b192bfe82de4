"""DeepSeek's own ``janus`` package as a second backend, for users who have it installed.

It lives only in DeepSeek's repository; the registry's package of that name is an asyncio queue.
It can be imported under transformers 4.57, but not under transformers 5, which breaks one of its
config classes.
"""

from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.model import Head, restore_float32

INSTALL = "install it from github.com/deepseek-ai/Janus together with 'transformers<5'"


class DeepSeekJanus(nn.Module):
    """A thin adapter onto ``MultiModalityCausalLM``; see :class:`lit_dola.janus.model.Backbone`."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        super().__init__()
        self.model = model
        self.language_model = model.language_model.model
        self.gen_head = self.head_module = model.gen_head
        self.image_head = Head(
            features=self._image_features,
            linear=model.gen_head.vision_head,
            embed=model.prepare_gen_img_embeds,
        )
        self.vq_model = model.gen_vision_model
        self.pad_token_id = pad_token_id
        vision = model.config.vision_config.params
        self.grid = vision["image_size"] // 16  # VQ-16 is the package's only tokenizer
        self.num_image_tokens = self.grid**2
        self.embedding_size = model.config.gen_vision_config.params["n_embed"]
        self.eval().requires_grad_(False)

    def _image_features(self, hidden_states: Tensor) -> Tensor:
        projected = self.gen_head.output_mlp_projector(hidden_states)
        features: Tensor = self.gen_head.vision_activation(projected)
        return features

    def decode_image_tokens(self, tokens: Tensor) -> Tensor:
        """See :class:`lit_dola.janus.model.ImageBackbone`."""
        shape = [len(tokens), self.embedding_size, self.grid, self.grid]
        pixels: Tensor = self.vq_model.decode_code(tokens, shape=shape)
        return pixels

    def restore_float32(self) -> None:
        """See :class:`lit_dola.janus.model.Backbone`."""
        restore_float32(self.language_model, self.vq_model)


def load_deepseek_janus(
    checkpoint: Checkpoint, *, pad_token_id: int, dtype: torch.dtype, device: torch.device | str
) -> DeepSeekJanus:
    """Load a checkpoint of the original layout with DeepSeek's own code."""
    check_installed()
    if checkpoint.layout != "multi_modality":
        raise UserError(
            f"DeepSeek's janus cannot read {checkpoint.folder}, which is in transformers'"
            " layout; use backend 'transformers'",
            setting="model.backend",
        )
    from janus.models import MultiModalityCausalLM

    folder = checkpoint.folder
    config = MultiModalityCausalLM.config_class.from_pretrained(folder)
    # The published config of Janus-1.3B asks for flash_attention_2, another package.
    config.language_config._attn_implementation = "sdpa"
    model = MultiModalityCausalLM.from_pretrained(folder, config=config, torch_dtype=dtype)
    return DeepSeekJanus(model.to(device), pad_token_id)


def check_installed() -> None:
    """Check that DeepSeek's package can be used."""
    if find_spec("janus") is None:
        raise UserError(
            f"DeepSeek's janus is not installed; {INSTALL}, or use backend 'transformers'",
            setting="model.backend",
        )
    if find_spec("janus.models") is None:
        raise UserError(
            "the installed 'janus' is the asyncio queue of that name, not DeepSeek's; pip"
            f" uninstall janus, then {INSTALL}",
            setting="model.backend",
        )
    installed = version("transformers")
    if int(installed.split(".")[0]) >= 5:
        raise UserError(
            f"DeepSeek's janus cannot be imported under transformers {installed}; pip install"
            " 'transformers>=4.57,<5', or use backend 'transformers'",
            setting="model.backend",
        )
