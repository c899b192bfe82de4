"""The key-value cache: buffers of a fixed shape, allocated once and written in place.

The attention of transformers' layers knows a cache by its ``update`` alone. A static cache serves
``torch.compile`` and CUDA graphs, and spares the copy of the whole cache that a growing one makes
at every step.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig


class KVCache:
    """Keys and values of every layer, each ``(rows, key_value_heads, slots, head_dim)``.

    Args:
        config: Config of the language model.
        rows: Sequences that are decoded together.
        slots: Tokens that each row has room for.
        dtype: Dtype of the keys and values.
        device: Device of the buffers.
    """

    def __init__(
        self, config: LlamaConfig, rows: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (rows, config.num_key_value_heads, slots, _head_dim(config))
        # Zeros, since what is masked out is still multiplied, by 0, and must not be NaN.
        buffers = [
            torch.zeros(shape, dtype=dtype, device=device)
            for _ in range(2 * config.num_hidden_layers)
        ]
        for buffer in buffers:
            torch._dynamo.mark_static_address(buffer)  # a CUDA graph may write to it
        self.keys, self.values = buffers[::2], buffers[1::2]
        self.rows, self.slots = rows, slots


def images_that_fit(config: LlamaConfig, slots: int, weight: Tensor) -> int:
    """Images that can be decoded together in the memory that is free on a GPU, at most 64.

    Past that the cache, which grows with the images, is what a step reads, and more images gain
    little. On other devices it is a fixed number.

    Args:
        config: Config of the language model.
        slots: Tokens that each of an image's two rows has room for.
        weight: A weight of the model, on its device and in the dtype of the cache.
    """
    if weight.device.type != "cuda":
        return 16
    free, _ = torch.cuda.mem_get_info(weight.device)
    free += torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
    heads = config.num_hidden_layers * config.num_key_value_heads
    image = 2 * 2 * slots * heads * _head_dim(config) * weight.element_size()
    # A tenth and 2 GiB are left for the logits, the graphs and the VQ decoder.
    fitting = int((0.9 * free - 2 * 2**30) // image)
    return max(1, min(fitting, 64))


def _head_dim(config: LlamaConfig) -> int:
    return config.head_dim or config.hidden_size // config.num_attention_heads


class PrefillView:
    """Takes the keys and values of whole prompts, and gives each row those of its own prompt.

    Args:
        cache: Where they are put, from slot 0.
        rows: Row of the prefill that each row of the cache takes, int64 ``(rows,)``.
    """

    def __init__(self, cache: KVCache, rows: Tensor) -> None:
        self.cache, self.rows = cache, rows

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Store what a layer has computed; gives what it attends to."""
        count, length = len(self.rows), key_states.shape[2]
        self.cache.keys[layer_idx][:count, :, :length] = key_states[self.rows]
        self.cache.values[layer_idx][:count, :, :length] = value_states[self.rows]
        return key_states, value_states


class StepView:
    """Takes one token a row, and gives the tokens up to it.

    Args:
        cache: Where the token is put.
        slot: Slot that it is put into, int64 ``(1,)`` on the device.
        rows: Rows in use, from the first.
        length: Slots that are attended to, from the first; past ``slot`` they must be masked.
    """

    def __init__(self, cache: KVCache, slot: Tensor, rows: int, length: int) -> None:
        self.cache, self.slot, self.rows, self.length = cache, slot, rows, length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Store what a layer has computed; gives what it attends to."""
        keys = self.cache.keys[layer_idx][: self.rows]
        values = self.cache.values[layer_idx][: self.rows]
        keys.index_copy_(2, self.slot, key_states)
        values.index_copy_(2, self.slot, value_states)
        return keys[:, :, : self.length], values[:, :, : self.length]
