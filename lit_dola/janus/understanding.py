"""Janus as understanding sees it: a vision tower, a language model and a text head."""

import torch
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaModel

from lit_dola.janus.model import Head, restore_rotary_frequencies, try_layer


class UnderstandingJanus(nn.Module):
    """transformers' Janus without the parts that only image generation uses.

    Args:
        config: Config of the model.
        pad_token_id: Token that stands for a picture where none is to be seen.

    The weights are on the meta device until :func:`lit_dola.janus.weights.load_weights` fills them.
    """

    unused = (
        "model.vqmodel.",
        "model.generation_embeddings.",
        "model.generation_aligner.",
        "model.generation_head.",
    )
    """Prefixes of the names of weights that are not loaded."""

    def __init__(self, config: JanusConfig, pad_token_id: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.model = JanusForConditionalGeneration(config)
        parts = self.model.model
        del parts.vqmodel, parts.generation_embeddings
        del parts.generation_aligner, parts.generation_head
        self.head_module = self.model.lm_head
        self.pad_token_id = pad_token_id
        self.use_language_model(parts.language_model)
        self.eval().requires_grad_(False)

    def use_language_model(self, language_model: LlamaModel) -> None:
        """Use a language model, e.g. one that is loaded for generation."""
        self.language_model = self.model.model.language_model = language_model
        self.text_head = Head(
            features=nn.Identity(), linear=self.model.lm_head, embed=language_model.embed_tokens
        )

    def embed_picture(self, pixels: Tensor) -> Tensor:
        """Return a picture's embeddings, which take the place of its tokens.

        One picture at a time: in a batch, the last bits would depend on the others.

        Args:
            pixels: ``(3, size, size)``, see :class:`lit_dola.janus.pixels.PixelProcessor`.

        Returns:
            ``(num_image_tokens, hidden)``.
        """
        parts = self.model.model
        weight = self.language_model.embed_tokens.weight
        states = parts.vision_model(pixels[None].to(weight)).last_hidden_state
        embeddings: Tensor = parts.aligner(states)[0]
        return embeddings

    def fill_buffers(self) -> None:
        """As :meth:`lit_dola.janus.model.TransformersJanus.fill_buffers`."""
        restore_rotary_frequencies(self.language_model)
        embeddings = self.model.model.vision_model.embeddings
        device = embeddings.position_embedding.weight.device
        embeddings.position_ids = torch.arange(embeddings.num_positions, device=device)[None]

    def try_shapes(self) -> None:
        """As :meth:`lit_dola.janus.model.TransformersJanus.try_shapes`."""
        vision = self.model.config.vision_config
        pixels = torch.zeros(3, vision.image_size, vision.image_size, device="meta")
        states = try_layer(self.language_model, self.embed_picture(pixels)[None])
        self.text_head.logits(self.language_model.norm(states))

    def restore_float32(self) -> None:
        """See :class:`lit_dola.janus.model.Backbone`."""
        restore_rotary_frequencies(self.language_model)
