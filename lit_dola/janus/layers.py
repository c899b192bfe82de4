"""Adapter for transformers' decoder layers, whose arguments change between releases."""

from dataclasses import dataclass
from importlib.metadata import version
from inspect import signature
from typing import Any, Protocol

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel

from lit_dola.errors import UserError

_CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Names of the argument that takes the cache: from transformers 5.24 on, and before."""


class LayerCache(Protocol):
    """All that an attention layer asks of a cache."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return those that it attends to.

        Releases differ in what they pass besides, which a cache of ours does not need.
        """


@dataclass(frozen=True)
class LayerAdapter:
    """Calls the decoder layers of the installed transformers."""

    cache_argument: str

    @classmethod
    def of(cls, language_model: LlamaModel) -> "LayerAdapter":
        """Read the signature of a model's layers."""
        arguments = signature(language_model.layers[0].forward).parameters
        for name in _CACHE_ARGUMENTS:
            if name in arguments:
                return cls(name)
        raise UserError(
            f"transformers {version('transformers')}: its decoder layers take none of"
            f" {', '.join(_CACHE_ARGUMENTS)}",
            "a version that pyproject.toml admits",
        )

    def __call__(
        self,
        layer: nn.Module,
        hidden_states: Tensor,
        cache: LayerCache,
        *,
        attention_mask: Tensor,
        position_ids: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Run one layer: ``(rows, length, hidden)`` to the same shape."""
        output: Tensor = layer(
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            position_embeddings=position_embeddings,
            **{self.cache_argument: cache},
        )
        return output
