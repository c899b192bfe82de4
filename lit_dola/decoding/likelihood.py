"""Log-probabilities of given texts after a prompt, with DoLa or without."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_dola.decoding.cache import KVCache
from lit_dola.decoding.loop import ATTENDED_BUCKET
from lit_dola.decoding.prefill import Branches, PromptCache, prefill, round_up
from lit_dola.decoding.scoring import Contrast
from lit_dola.decoding.step import Decoder, run_window
from lit_dola.dola import apc_mask, log_contrast
from lit_dola.janus.model import Backbone, Head


class TextScorer:
    """Reads the distributions of a language model instead of drawing from them.

    Args:
        janus: The model.
        head: Predicts and embeds the tokens.
        contrast: Settings of the contrast.
        layer: Index of the middle layer in ``hidden_states``; None turns DoLa off.
        texts_at_once: Texts whose tokens run together.
    """

    def __init__(
        self,
        janus: Backbone,
        head: Head,
        contrast: Contrast,
        *,
        layer: int | None,
        texts_at_once: int = 16,
    ) -> None:
        self.decoder = Decoder.of(janus, head, contrast, layer)
        self.texts_at_once = texts_at_once

    @torch.no_grad()
    def next_log_probs(self, branches: Branches, embeddings: Tensor | None = None) -> Tensor:
        """Return the log-probabilities of the next token, float32 ``(branches, vocab)``.

        Args:
            branches: The prompt; the head set is that of its first branch.
            embeddings: What negative token ids stand for, ``(rows, hidden)``.
        """
        cache = self._cache(len(branches[0]), len(branches))
        states = prefill(self.decoder, [branches], cache, PromptCache(0), embeddings)
        return self._log_probs(states[:, None])[0, :, 0]

    @torch.no_grad()
    def mean_log_probs(
        self, branches: Branches, texts: Sequence[Sequence[int]], embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the mean log-probability per token of texts that follow a prompt.

        Args:
            branches: The prompt; the head sets are those of its first branch.
            texts: Token ids of each text, at least one.
            embeddings: What negative token ids stand for, ``(rows, hidden)``.

        Returns:
            Float32 ``(texts, branches)``; ``-inf`` for a text with a token outside a head set.
        """
        length, count = len(branches[0]), min(len(texts), self.texts_at_once)
        cache = self._cache(length + max(map(len, texts)), count * len(branches))
        # Every group of texts starts from the same rows, and overwrites what the last one added.
        states = prefill(self.decoder, [branches] * count, cache, PromptCache(0), embeddings)
        states = states.view(len(states), count, len(branches), *states.shape[2:])
        parts = [
            self._mean_log_probs(states, length, cache, texts[first : first + count])
            for first in range(0, len(texts), count)
        ]
        return torch.cat(parts)

    def _mean_log_probs(
        self, states: Tensor, length: int, cache: KVCache, texts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Return :meth:`mean_log_probs` of a few texts after a prompt that is in the cache.

        Args:
            states: Those of the prompt's last token, ``(layers, rows, branches, 1, hidden)``.
            length: Tokens of the prompt.
            cache: Its keys and values, in ``rows * branches`` rows.
            texts: At most as many as rows.
        """
        count, longest, branches = len(texts), max(map(len, texts)), states.shape[2]
        states = states[:, :count]
        tokens = torch.tensor(
            [[*ids, *[0] * (longest - len(ids))] for ids in texts], device=states.device
        )
        if longest > 1:
            inputs = tokens[:, :-1].repeat_interleave(branches, dim=0)
            own = length + torch.arange(longest - 1, device=inputs.device).expand_as(inputs)
            slots = torch.arange(cache.slots, device=inputs.device)
            added = run_window(self.decoder, cache, inputs, own, slots)
            added = added.view(len(added), count, branches, *added.shape[2:])
            states = torch.cat([states, added], dim=3)
        log_probs = self._log_probs(states)
        wanted = tokens[:, None, :, None].expand(-1, branches, -1, -1)
        of_texts = log_probs.gather(-1, wanted)[..., 0]
        lengths = torch.tensor([len(ids) for ids in texts], device=tokens.device)[:, None, None]
        inside = torch.arange(longest, device=tokens.device) < lengths
        return of_texts.where(inside, 0.0).sum(dim=-1) / lengths[..., 0]

    def _log_probs(self, states: Tensor) -> Tensor:
        """Turn states ``(layers, texts, branches, tokens, hidden)`` into log-probabilities."""
        contrast = self.decoder.contrast
        final, *mid = self.decoder.head.logits(states).float()
        scores = log_contrast(final, mid[0], contrast.strength)[0] if mid else final
        if contrast.alpha > 0:
            allowed = apc_mask(final[:, :1], contrast.alpha)
            scores = scores.masked_fill(~allowed, float("-inf"))
        return scores.log_softmax(dim=-1)

    def _cache(self, slots: int, rows: int) -> KVCache:
        language_model = self.decoder.language_model
        weight = language_model.embed_tokens.weight
        slots = round_up(slots, ATTENDED_BUCKET)
        return KVCache(language_model.config, rows, slots, weight.dtype, weight.device)
