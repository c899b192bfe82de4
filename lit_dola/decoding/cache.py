"""The key-value cache: buffers of a fixed shape, allocated once and written in place.

A static cache suits ``torch.compile`` and CUDA graphs, and avoids the full copy that a growing
cache makes per step. :class:`lit_dola.janus.layers.LayerCache` is the protocol of attention layers.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

ROWS_ON_CPU = 32
"""Rows per batch on a CPU."""
MOST_ROWS = 128
"""Maximum number of rows per batch on a GPU."""


class KVCache:
    """Keys and values of every layer, each ``(rows, key_value_heads, slots, head_dim)``.

    Args:
        config: Config of the language model.
        rows: Sequences that are decoded together.
        slots: Tokens that fit into each row.
        dtype: Dtype of the keys and values.
        device: Device of the buffers.
    """

    def __init__(
        self, config: LlamaConfig, rows: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (rows, config.num_key_value_heads, slots, _head_dim(config))
        # Zeros, because masked slots are still multiplied (by 0) and must not be NaN.
        buffers = [
            torch.zeros(shape, dtype=dtype, device=device)
            for _ in range(2 * config.num_hidden_layers)
        ]
        for buffer in buffers:
            torch._dynamo.mark_static_address(buffer)  # a CUDA graph may write to it
        self.buffers = buffers
        """Keys and values of the first layer, then those of the next one, and so on."""
        self.keys, self.values = buffers[::2], buffers[1::2]
        self.rows, self.slots = rows, slots

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows over others, each int64 ``(rows,)``."""
        for buffer in self.buffers:
            buffer[target] = buffer[source]

    def clear(self, rows: Tensor | slice = slice(None)) -> None:
        """Zero rows, whose masked slots would otherwise be NaN after logits that are."""
        for buffer in self.buffers:
            buffer[rows] = 0


def images_that_fit(config: LlamaConfig, slots: int, weight: Tensor, rows: int = 2) -> int:
    """Return how many images fit into the free memory of a GPU, at most 128 rows.

    Beyond 128 rows a step mostly reads the cache, which grows with them, so larger batches gain
    little. On other devices the answer is a fixed number.

    Args:
        config: Config of the language model.
        slots: Tokens that fit into each row.
        weight: A weight of the model, on its device and in the dtype of the cache.
        rows: Rows per image: two with guidance, else one.
    """
    if weight.device.type != "cuda":
        return ROWS_ON_CPU // rows
    free, _ = torch.cuda.mem_get_info(weight.device)
    free += torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
    heads = config.num_hidden_layers * config.num_key_value_heads
    image = rows * 2 * slots * heads * _head_dim(config) * weight.element_size()
    # Leave a tenth and 2 GiB for logits, CUDA graphs and the VQ decoder.
    fitting = int((0.9 * free - 2 * 2**30) // image)
    return max(1, min(fitting, MOST_ROWS // rows))


def _head_dim(config: LlamaConfig) -> int:
    return int(config.head_dim or config.hidden_size // config.num_attention_heads)


class PrefillView:
    """Writes the keys and values of one prompt into every row that starts from it.

    Args:
        cache: Written from slot 0 on.
        rows: Rows of the cache that start from each branch, int64 ``(branches, copies)``.
        length: Tokens of the prompt; what follows them is padding and is not kept.
    """

    def __init__(self, cache: KVCache, rows: Tensor, length: int) -> None:
        self.cache, self.rows, self.length = cache, rows, length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return those that it attends to."""
        for rows, keys, values in zip(self.rows, key_states, value_states):
            self.cache.keys[layer_idx][rows, :, : self.length] = keys[:, : self.length]
            self.cache.values[layer_idx][rows, :, : self.length] = values[:, : self.length]
        return key_states, value_states


class StepView:
    """Writes a window of tokens per row into slots of its own, and returns all up to a length.

    Args:
        cache: The cache.
        slots: Slots that each row writes, int64 ``(rows, window)`` on the device; the rows are the
            first ones of the cache.
        length: Number of slots to attend to, counted from the first; those past a row's own slot
            must be masked.
    """

    def __init__(self, cache: KVCache, slots: Tensor, length: int) -> None:
        self.cache, self.rows, self.length = cache, len(slots), length
        # Where each head of each row writes, in a buffer seen as one long list of slots.
        heads = cache.keys[0].shape[1]
        first = torch.arange(self.rows * heads, device=slots.device) * cache.slots
        self.places = (first.view(self.rows, heads, 1) + slots[:, None]).flatten()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return those that it attends to."""
        keys, values = self.cache.keys[layer_idx], self.cache.values[layer_idx]
        dim = key_states.shape[-1]
        keys.view(-1, dim).index_copy_(0, self.places, key_states.reshape(-1, dim))
        values.view(-1, dim).index_copy_(0, self.places, value_states.reshape(-1, dim))
        return keys[: self.rows, :, : self.length], values[: self.rows, :, : self.length]
