"""One decoding step: the layers, the head, the scores and the draw.

Every tensor has a fixed shape and nothing waits for the device, so the step can be compiled once
and replayed as a CUDA graph.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel

from lit_dola.decoding.cache import KVCache, StepView
from lit_dola.decoding.sampling import gumbel_noise, log_probs_of
from lit_dola.decoding.scoring import Contrast, Scoring, score_features
from lit_dola.janus.layers import LayerAdapter, LayerCache
from lit_dola.janus.model import Backbone, Head

_COMPILE_OPTIONS: dict[str, Any] = {
    # On the CPU, torch 2.13's vectorized argmax over a sum that contains int64 arithmetic returns
    # garbage indices; the scalar one is right.
    "cpp.simdlen": 1,
}


@dataclass(frozen=True, eq=False)
class Decoder:
    """Model and settings, the same at every step."""

    language_model: LlamaModel
    head: Head
    contrast: Contrast
    """A :class:`Scoring`, if tokens are drawn."""
    layer: int | None
    """Index of the middle layer in ``hidden_states``; None if the scores need none."""
    run_layer: LayerAdapter
    prior: Tensor | None = None
    """Added to the scores of every token, float32 ``(vocab,)``."""
    lens: nn.Linear | None = None
    """Readout that was trained for the middle layer, see :mod:`lit_dola.janus.lens`."""
    logprobs: bool = False
    """Measure the log-probability of each token that is drawn."""

    @classmethod
    def of(
        cls,
        janus: Backbone,
        head: Head,
        contrast: Contrast,
        layer: int | None,
        prior: Tensor | None = None,
        lens: nn.Linear | None = None,
        logprobs: bool = False,
    ) -> "Decoder":
        """Return the decoder of a model; without a middle layer DoLa is off."""
        if layer is None:
            contrast = contrast.baseline
        needed = layer if contrast.uses_mid else None
        run_layer = LayerAdapter.of(janus.language_model)
        model = janus.language_model
        return cls(model, head, contrast, needed, run_layer, prior, lens, logprobs)

    @property
    def scoring(self) -> Scoring:
        """Settings that turn logits into a token."""
        assert isinstance(self.contrast, Scoring)
        return self.contrast


class Drawn(NamedTuple):
    """Drawn tokens."""

    tokens: Tensor
    """Token ids, int64 ``(sequences, window)``."""
    finite: Tensor
    """True for tokens whose logits are finite, bool, same shape."""
    logprobs: Tensor
    """Log-probabilities in nats, float32 ``(2, sequences, window)``: under the model's own
    distribution (final layer, conditional branch, temperature 1), and under that which the token
    was drawn from. ``(0, sequences, window)`` if they are not measured."""


def read_mid(
    language_model: LlamaModel, hidden_states: Tensor, mid_norm: bool, lens: nn.Linear | None
) -> Tensor:
    """Return the middle layer's states as the head is to read them.

    Args:
        language_model: The language model, whose final norm a lens or ``mid_norm`` applies.
        hidden_states: The states, ``(..., hidden)``.
        mid_norm: Apply the final norm.
        lens: Readout that was trained for the layer; None: none.
    """
    if lens is not None:
        hidden_states = hidden_states + lens(hidden_states)
    elif not mid_norm:
        return hidden_states
    normed: Tensor = language_model.norm(hidden_states)
    return normed


Step = Callable[[Decoder, KVCache, Tensor, Tensor, Tensor, Tensor, Tensor], Any]
"""The type of :func:`decode_window`, compiled or not."""


def compile_step(weights: Iterable[Tensor], graphs: bool = True) -> Step:
    """Compile :func:`decode_window`.

    Args:
        weights: Every weight of the model; a CUDA graph would copy the others at every step.
        graphs: Use CUDA graphs on a GPU.
    """
    for weight in weights:
        torch._dynamo.mark_static_address(weight, guard=False)
    options = {**_COMPILE_OPTIONS, "triton.cudagraphs": graphs}
    return torch.compile(decode_window, fullgraph=True, options=options)


def decode_window(
    decoder: Decoder,
    cache: KVCache,
    inputs: Tensor,
    streams: Tensor,
    first: Tensor,
    prompt_lengths: Tensor,
    slots: Tensor,
) -> Drawn:
    """Append a window of tokens to the cache and draw the token after each of them.

    With a window of one token this is a decoding step.

    Args:
        decoder: Model and settings.
        cache: Keys and values of all earlier tokens; a token's slot is its position.
        inputs: The tokens before those to draw, int64 ``(sequences, window)``.
        streams: Random stream of each sequence, int64 ``(sequences,)``.
        first: Index of the first token to draw, int64 ``(sequences, 1)``, or ``(1, 1)`` for all.
        prompt_lengths: Tokens of each row's prompt, int64 ``(rows, 1)``; the rows are
            ``sequences * branches``, all branches of the first sequence first.
        slots: 0, 1, ... up to the last slot that any row attends to, int64.

    Returns:
        As :func:`draw`.
    """
    sequences, window = inputs.shape
    branches = len(prompt_lengths) // sequences
    steps = (first + torch.arange(window, device=first.device)).expand(sequences, window)
    own = prompt_lengths + steps.repeat_interleave(branches, dim=0) - 1
    states = run_window(decoder, cache, inputs.repeat_interleave(branches, dim=0), own, slots)
    return draw(decoder, states, streams, steps)


def run_window(
    decoder: Decoder, cache: KVCache, inputs: Tensor, own: Tensor, slots: Tensor
) -> Tensor:
    """Append a window of tokens to the cache and run them through the layers.

    Args:
        decoder: Model and settings.
        cache: Keys and values of all earlier tokens.
        inputs: Tokens of each row, int64 ``(rows, window)``.
        own: The slot of each token, int64, same shape.
        slots: 0, 1, ... up to the last slot that any row attends to, int64.

    Returns:
        As :func:`forward_layers`.
    """
    inputs_embeds = decoder.head.embed(inputs)
    # Added to attention scores; every layer would derive this again from a bool mask.
    attention_mask = inputs_embeds.new_zeros(()).where(slots <= own[..., None], float("-inf"))
    return forward_layers(
        decoder, inputs_embeds, attention_mask[:, None], own, StepView(cache, own, len(slots))
    )


def forward_layers(
    decoder: Decoder,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    cache: LayerCache,
    kept: slice = slice(None),
) -> Tensor:
    """Run the layers as ``LlamaModel`` does, keeping some positions of one or two layers.

    Args:
        decoder: Model and settings.
        inputs_embeds: Embeddings of the tokens, ``(rows, length, hidden)``.
        attention_mask: What each token attends to: True, or 0 where others are -inf.
        position_ids: Positions of the tokens.
        cache: Where keys and values go.
        kept: The positions to keep.

    Returns:
        ``(1, rows, kept, hidden)``: the final hidden state, after the final norm. If the scores
        need the middle layer, its state follows: ``(2, rows, kept, hidden)``.
    """
    language_model = decoder.language_model
    hidden_states = inputs_embeds
    position_embeddings = language_model.rotary_emb(hidden_states, position_ids)
    mid_state: list[Tensor] = []
    # hidden_states[0] is the embedding, so entry j is the output of the j-th layer.
    for index, layer in enumerate(language_model.layers, start=1):
        hidden_states = decoder.run_layer(
            layer,
            hidden_states,
            cache,
            attention_mask=attention_mask,
            position_ids=position_ids,
            position_embeddings=position_embeddings,
        )
        if index == decoder.layer:
            read = hidden_states[:, kept]
            mid_state.append(
                read_mid(language_model, read, decoder.contrast.mid_norm, decoder.lens)
            )
    return torch.stack([language_model.norm(hidden_states[:, kept]), *mid_state])


def draw(decoder: Decoder, states: Tensor, streams: Tensor, steps: Tensor) -> Drawn:
    """Draw a window of tokens per sequence from the hidden states of its rows.

    Args:
        decoder: Model and settings.
        states: As :func:`forward_layers` returns them.
        streams: Random stream of each sequence, int64 ``(sequences,)``.
        steps: Indices of the tokens to draw, int64 ``(sequences, window)``.
    """
    values, logits, finite, own = race(decoder, states, streams, steps)
    tokens = values.argmax(dim=-1)
    logprobs = values.new_empty(0, *steps.shape)
    if decoder.logprobs:
        both = log_probs_of(own.float(), tokens), decoder.scoring.log_probs(logits, tokens)
        logprobs = torch.stack(both).view(2, *steps.shape)
    return Drawn(tokens.view_as(steps), finite, logprobs)


def race(
    decoder: Decoder, states: Tensor, streams: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the values of all tokens, of which the largest is drawn; arguments as :func:`draw`.

    Returns:
        The values and, before the noise, the logits of the distribution that is drawn from, float32
        ``(sequences * window, vocab)``; whether scores are finite, bool ``(sequences, window)``;
        the model's own logits.
    """
    features = decoder.head.features(states)
    features = features.view(len(states), len(steps), -1, *features.shape[-2:])
    # (layers, branches, sequences * window, features)
    features = features.transpose(1, 2).flatten(2, 3)
    scores, own = score_features(features, decoder.head.linear, decoder.scoring)
    if decoder.prior is not None:
        scores = scores + decoder.prior
    streams = streams[:, None].expand_as(steps).flatten()
    noise = gumbel_noise(streams, steps.flatten(), scores.shape[-1])
    logits = decoder.scoring.logits(scores)
    finite = scores.amax(dim=-1).isfinite().view_as(steps)
    return decoder.scoring.perturb(logits, noise), logits, finite, own
