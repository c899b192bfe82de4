"""Janus as generation sees it: a language model, an image head and a VQ decoder.

The backbone is transformers' own Janus. No class of it is edited, subclassed or patched.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaModel


@dataclass(frozen=True, eq=False)
class Head:
    """Predicts tokens of one kind from hidden states, and embeds them as the next input.

    The image head (``gen_head``) is one; a text head (``lm_head``, with the identity as its
    features) is another. The head is split before its last linear layer because that layer, the
    contrast and classifier-free guidance are all linear, so features can be combined first.
    """

    features: Callable[[Tensor], Tensor]
    """Hidden states ``(..., hidden)`` to what ``linear`` takes, ``(..., features)``."""
    linear: nn.Linear
    """The head's last layer: ``(..., features)`` to logits ``(..., vocab)``."""
    embed: Callable[[Tensor], Tensor]
    """Token ids, int64 ``(...)``, to the language model's inputs, ``(..., hidden)``."""

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Hidden states ``(..., hidden)`` to logits ``(..., vocab)``."""
        logits: Tensor = self.linear(self.features(hidden_states))
        return logits


class Backbone(Protocol):
    """Protocol of a loaded Janus for decoding, whichever package its code comes from."""

    model: nn.Module
    language_model: LlamaModel
    head_module: nn.Module
    """The module of the head that decoding uses."""
    pad_token_id: int

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over every weight."""

    def restore_float32(self) -> None:
        """Restore to float32 what stays in it, after the whole module was cast.

        See :func:`restore_float32`.
        """


class ImageBackbone(Backbone, Protocol):
    """Protocol of a loaded Janus for image generation."""

    image_head: Head
    vq_model: nn.Module
    num_image_tokens: int

    def decode_image_tokens(self, tokens: Tensor) -> Tensor:
        """Decode int64 ``(images, num_image_tokens)`` to pixels ``(images, 3, height, width)``.

        Pixels are in [-1, 1], except where the VQ decoder overshoots.
        """


def linear_layers(janus: Backbone) -> list[nn.Linear]:
    """Return the linear layers that a decoding step reads, those of the head last."""
    modules = [*janus.language_model.modules(), *janus.head_module.modules()]
    return [module for module in modules if isinstance(module, nn.Linear)]


_VQ_ENCODER = ("model.vqmodel.encoder.", "model.vqmodel.quant_conv.")


class TransformersJanus(nn.Module):
    """transformers' Janus without the parts that image generation never uses.

    Args:
        config: Config of the model.
        pad_token_id: Token that replaces the prompt in the unconditional branch.
        encodes: Keep the VQ encoder, which generation does not use.

    The weights are on the meta device until :func:`lit_dola.janus.weights.load_weights` fills them.
    """

    unused: tuple[str, ...] = ("lm_head.", "model.vision_model.", "model.aligner.", *_VQ_ENCODER)
    """Prefixes of the names of weights that are not loaded."""

    def __init__(self, config: JanusConfig, pad_token_id: int, encodes: bool = False) -> None:
        super().__init__()
        with torch.device("meta"):
            self.model = JanusForConditionalGeneration(config)
        del self.model.lm_head, self.model.model.vision_model, self.model.model.aligner
        if encodes:
            self.unused = tuple(name for name in self.unused if name not in _VQ_ENCODER)
        else:
            del self.model.model.vqmodel.encoder, self.model.model.vqmodel.quant_conv
        self.language_model = self.model.model.language_model
        self.gen_head = self.head_module = self.model.model.generation_head
        self.image_head = Head(
            features=self._image_features,
            linear=self.gen_head.vision_head,
            embed=self.model.prepare_embeddings_for_image_generation,
        )
        self.vq_model = self.model.model.vqmodel
        self.num_image_tokens = int(config.vision_config.num_image_tokens)
        self.pad_token_id = pad_token_id
        self.eval().requires_grad_(False)

    def fill_buffers(self) -> None:
        """Compute what is not among the weights of a checkpoint, on the device of the weights."""
        restore_rotary_frequencies(self.language_model)

    def try_shapes(self) -> None:
        """Run each part once while the weights are on the meta device, where it costs nothing.

        Raises whatever the parts raise if the config describes some that do not fit together.
        """
        tokens = torch.zeros(1, self.num_image_tokens, dtype=torch.long, device="meta")
        states = try_layer(self.language_model, self.image_head.embed(tokens))
        self.image_head.logits(self.language_model.norm(states))
        self.decode_image_tokens(tokens)

    def _image_features(self, hidden_states: Tensor) -> Tensor:
        features: Tensor = self.gen_head.activation_fn(self.gen_head.proj_out(hidden_states))
        return features

    def decode_image_tokens(self, tokens: Tensor) -> Tensor:
        """See :class:`ImageBackbone`."""
        pixels: Tensor = self.vq_model.decode(tokens)
        return pixels

    def restore_float32(self) -> None:
        """See :class:`Backbone`."""
        restore_float32(self.language_model, self.vq_model)


def try_layer(language_model: LlamaModel, states: Tensor) -> Tensor:
    """Run the first layer of a Llama on the meta device, on states ``(rows, length, hidden)``."""
    rotary = type(language_model.rotary_emb)(config=language_model.config)
    positions = torch.arange(states.shape[1])[None]
    # On the CPU: some releases of transformers enter autocast, which knows no meta device.
    cos, sin = rotary(torch.zeros(1), positions)
    layer: Any = language_model.layers[0]
    output: Tensor = layer(states, position_embeddings=(cos.to("meta"), sin.to("meta")))
    return output


def restore_float32(language_model: LlamaModel, vq_model: nn.Module) -> None:
    """Restore to float32 what stays in it whatever the dtype of the weights, in place.

    Lightning's true half precision casts a module as a whole. The rotary frequencies stay in
    float32, see :func:`restore_rotary_frequencies`. On a CPU the VQ decoder does, too: CPUs without
    bfloat16 instructions convolve in it several times slower, and pixels should not depend on that.
    """
    restore_rotary_frequencies(language_model)
    weight = language_model.embed_tokens.weight
    if weight.device.type == "cpu" and weight.dtype.itemsize < 4:
        vq_model.float()


def restore_rotary_frequencies(language_model: LlamaModel) -> None:
    """Compute the rotary frequencies of a Llama in float32, on the device of its weights.

    transformers keeps them in float32 whatever the model's dtype: they are multiplied by positions.
    """
    rotary = type(language_model.rotary_emb)
    with language_model.embed_tokens.weight.device:
        language_model.rotary_emb = rotary(config=language_model.config)
