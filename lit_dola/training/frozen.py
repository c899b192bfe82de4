"""The frozen Janus whose middle layers lenses read, for either head."""

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaModel

from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.lens import LensHead
from lit_dola.janus.loading import load_janus, load_understanding
from lit_dola.janus.model import Head
from lit_dola.janus.tokenizer import unconditional_ids
from lit_dola.janus.vq import encode_pixels
from lit_dola.training.sources import LensSequence


class FrozenJanus(Protocol):
    """Protocol of a frozen Janus with one of its heads."""

    language_model: LlamaModel
    head: Head

    def prompt(self, sequence: LensSequence, dropped: bool) -> Tensor:
        """Return the embeddings of a prompt, ``(length, hidden)``.

        Args:
            sequence: The sequence.
            dropped: Return those of its unconditional branch.
        """

    def tokens(self, sequence: LensSequence) -> Tensor:
        """Return the tokens that follow the prompt, int64 ``(tokens,)``, on the model's device."""


def freeze_janus(
    head: LensHead, checkpoint: Checkpoint, encodes: bool, **options: Any
) -> FrozenJanus:
    """Load the parts of a Janus that training lenses of a head needs.

    Args:
        head: The head.
        checkpoint: The checkpoint.
        encodes: Load the VQ encoder, for pictures without tokens; the text head needs none.
        options: Those of :func:`lit_dola.janus.loading.load_janus`.
    """
    if head == "image":
        return _Drawing(checkpoint, encodes=encodes, **options)
    return _Answering(checkpoint, **options)


class _Drawing:
    """The frozen Janus that draws images."""

    def __init__(self, checkpoint: Checkpoint, **options: Any) -> None:
        self.janus = load_janus(checkpoint, **options)
        self.language_model, self.head = self.janus.language_model, self.janus.image_head

    def prompt(self, sequence: LensSequence, dropped: bool) -> Tensor:
        """See :class:`FrozenJanus`."""
        ids, embed = sequence.input_ids, self.language_model.embed_tokens
        own = unconditional_ids(ids, self.janus.pad_token_id) if dropped else ids
        embeddings: Tensor = embed(torch.tensor(own, device=embed.weight.device))
        return embeddings

    def tokens(self, sequence: LensSequence) -> Tensor:
        """See :class:`FrozenJanus`."""
        device = self.language_model.embed_tokens.weight.device
        if sequence.tokens is None:
            (pixels,) = sequence.pixels
            return encode_pixels(self.janus.vq_model, pixels[None].to(device))[0]
        return sequence.tokens.to(device)


class _Answering:
    """The frozen Janus that answers questions about pictures."""

    def __init__(self, checkpoint: Checkpoint, **options: Any) -> None:
        self.janus = load_understanding(checkpoint, **options)
        self.language_model, self.head = self.janus.language_model, self.janus.text_head

    def prompt(self, sequence: LensSequence, dropped: bool) -> Tensor:
        """See :class:`FrozenJanus`."""
        embed = self.language_model.embed_tokens
        ids = torch.tensor(sequence.input_ids, device=embed.weight.device)
        pictured = ids < 0
        embeddings: Tensor = embed(ids.masked_fill(pictured, self.janus.pad_token_id))
        if not dropped and sequence.pixels:
            parts = [self.janus.embed_picture(each.to(ids.device)) for each in sequence.pixels]
            embeddings[pictured] = torch.cat(parts)[-1 - ids[pictured]].to(embeddings.dtype)
        return embeddings

    def tokens(self, sequence: LensSequence) -> Tensor:
        """See :class:`FrozenJanus`."""
        assert sequence.tokens is not None
        return sequence.tokens.to(self.language_model.embed_tokens.weight.device)
