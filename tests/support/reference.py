"""A plain reference: one image at a time, no cache, float64, the formulas line by line.

Written from the description of the method alone; it shares no code with the package. A caller may
guess the tokens, see :class:`Positions`: a guess changes how long it takes, never the result.
"""

import math
from functools import cache

import numpy as np
import torch

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The published algorithm on Python's integers."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@cache
def gumbel(seed: int, prompt_index: int, image_index: int, step: int, vocab_size: int):
    key = splitmix64(seed)
    key = splitmix64((key + prompt_index) & MASK)
    key = splitmix64((key + image_index) & MASK)
    key = splitmix64((key + step) & MASK)
    noise = []
    for token in range(vocab_size):
        bits = splitmix64((key + token * 0x9E3779B97F4A7C15) & MASK)
        uniform = np.float32(np.float32(bits >> 33) + np.float32(0.5)) / np.float32(2**31)
        uniform = min(float(uniform), 1 - 2.0**-24)
        noise.append(-math.log(-math.log1p(-uniform)))
    return np.array(noise)


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def contrast(final, mid, strength=1.0):
    return log_softmax(final) - strength * log_softmax(mid)


def head_set(final, alpha):
    q = np.exp(log_softmax(final))
    return q >= alpha * q.max() * (1 - 1e-12)


def fuse(logits, *, alpha, cfg_weight, apc, strength=1.0, beta=None):
    """Scores from (cond final, uncond final) or from those and (cond mid, uncond mid)."""
    if beta is not None:  # the contrast "guide"
        cond, uncond, cond_mid = map(log_softmax, logits[:3])
        guided = uncond + cfg_weight * (cond - uncond) + beta * (cond - cond_mid)
        in_cond, in_uncond = head_set(logits[0], alpha), head_set(logits[1], alpha)
        return np.where(in_cond | in_uncond if apc == "union" else in_cond, guided, -np.inf)
    if len(logits) == 2:
        cond, uncond = logits
        return uncond + cfg_weight * (cond - uncond)
    cond_final, uncond_final, cond_mid, uncond_mid = logits
    cond = contrast(cond_final, cond_mid, strength)
    uncond = contrast(uncond_final, uncond_mid, strength)
    in_cond, in_uncond = head_set(cond_final, alpha), head_set(uncond_final, alpha)
    if apc == "per_branch":
        cond, uncond = np.where(in_cond, cond, -1e9), np.where(in_uncond, uncond, -1e9)
        return uncond + cfg_weight * (cond - uncond)
    allowed = {
        "cond": in_cond,
        "union": in_cond | in_uncond,
        "intersection": in_cond & in_uncond if (in_cond & in_uncond).any() else in_cond,
    }[apc]
    return np.where(allowed, uncond + cfg_weight * (cond - uncond), -np.inf)


def entropy(scores):
    q = np.exp(log_softmax(scores))
    return -sum(x * math.log(x) for x in q if x > 0)


def draw(scores, noise, *, temperature, **how):
    if temperature == 0:
        return int(np.argmax(scores))
    return int(np.argmax(distribution(scores, temperature=temperature, **how) + noise))


def log_probs(token, final, scores, *, temperature, **how):
    """Of a drawn token: under the final layer of the first branch, and as it was drawn."""
    own = log_softmax(final)[token]
    if temperature == 0:
        return own, 0.0
    return own, log_softmax(distribution(scores, temperature=temperature, **how))[token]


def distribution(scores, *, temperature, top_k, top_p, min_p=None, entropy_temperature=None):
    """Logits of what is drawn from, -inf for tokens that cannot be drawn."""
    if entropy_temperature is not None:
        span, scale, floor = entropy_temperature
        temperature *= span * math.exp(-entropy(scores) / scale) + floor
    logits = scores / temperature
    order = np.argsort(-logits, kind="stable")
    keep = np.ones(len(logits), dtype=bool)
    if top_k is not None:
        keep &= logits >= logits[order[min(top_k, len(logits)) - 1]]
    if top_p is not None:
        probs = np.exp(log_softmax(np.where(keep, logits, -np.inf)))
        mass, nucleus = 0.0, set()
        for token in np.argsort(-np.where(keep, logits, -np.inf), kind="stable"):
            if mass >= top_p:
                break
            nucleus.add(token)
            mass += probs[token]
        keep &= np.isin(np.arange(len(logits)), list(nucleus))
    if min_p is not None:
        probs = np.exp(log_softmax(logits))
        keep &= probs >= min_p * probs.max()
    return np.where(keep, logits, -np.inf)


class TransformersJanus:
    """transformers' Janus in the terms that :func:`generate` needs."""

    def __init__(self, model):
        self.model, self.language_model = model, model.model.language_model
        self.norm, self.gen_head = self.language_model.norm, model.model.generation_head
        self.num_image_tokens = model.config.vision_config.num_image_tokens

    def embed(self, input_ids):
        return self.language_model.embed_tokens(input_ids)

    def see(self, pixels):
        states = self.model.model.vision_model(pixels[None]).last_hidden_state
        return self.model.model.aligner(states)[0]

    def lm_head(self, states):
        return self.model.lm_head(states)

    def embed_image(self, tokens):
        return self.model.prepare_embeddings_for_image_generation(tokens)

    def hidden_states(self, inputs):
        states = [inputs]

        def note(_layer, _args, output):
            states.append(output[0] if isinstance(output, tuple) else output)

        hooks = [layer.register_forward_hook(note) for layer in self.language_model.layers]
        normed = self.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        for hook in hooks:
            hook.remove()
        return [*states[:-1], normed]


class Positions:
    """Hidden states after inputs and the tokens drawn so far, without any padding.

    As long as these tokens are the guessed ones, one forward pass over the whole guess has the
    states of all positions: attention is causal, so what follows a position does not change it.

    Args:
        janus: The model.
        inputs: Embeddings of each branch, ``(1, length, hidden)``, perhaps of different lengths.
        embed: Embeds tokens ``(1, length)``.
        guess: Tokens that are likely to be drawn; they may be wrong or none at all.
    """

    def __init__(self, janus, inputs, embed, guess=()):
        self.janus, self.inputs, self.embed, self.guess = janus, inputs, embed, list(guess)
        self.known = self.run(self.guess[:-1])

    def run(self, tokens):
        """States of every layer from the last input on, ``(branches, 1 + tokens, hidden)``."""
        branches = self.inputs
        if tokens:
            drawn = self.embed(torch.tensor([tokens]))
            branches = [torch.cat([inputs, drawn], dim=1) for inputs in branches]
        if len({inputs.shape for inputs in branches}) == 1:
            rows = [self.janus.hidden_states(torch.cat(branches))]
        else:
            rows = [self.janus.hidden_states(inputs) for inputs in branches]
        return [torch.cat([row[:, -1 - len(tokens) :] for row in layer]) for layer in zip(*rows)]

    def after(self, tokens):
        """States of every layer after these tokens, ``(branches, hidden)``."""
        place = len(tokens)
        if place < self.known[0].shape[1] and tokens == self.guess[:place]:
            return [states[:, place] for states in self.known]
        return [states[:, -1] for states in self.run(tokens)]


@torch.no_grad()
def generate(
    janus,
    input_ids,
    pad_token_id,
    *,
    guess=(),
    layer=None,
    alpha=0.1,
    strength=1.0,
    mid_norm=False,
    apc="cond",
    cfg_weight=5.0,
    temperature=1.0,
    top_k=None,
    top_p=None,
    min_p=None,
    entropy_temperature=None,
    seed=0,
    prompt_index=0,
    image_index=0,
    negative_ids=None,
    beta=None,
    lens=None,
    logprobs=None,
):
    """Tokens of one image, from a Janus in float64; a lens is ``A`` and ``b``.

    A list ``logprobs`` receives two log-probabilities per token.
    """
    uncond_ids = negative_ids or (
        [input_ids[0]] + [pad_token_id] * (len(input_ids) - 2) + [input_ids[-1]]
    )
    branches = [janus.embed(torch.tensor([ids])) for ids in (input_ids, uncond_ids)]
    positions, tokens = Positions(janus, branches, janus.embed_image, guess), []
    for step in range(janus.num_image_tokens):
        hidden_states = positions.after(tokens)
        states = [hidden_states[-1]]
        if layer is not None:
            mid = hidden_states[layer]
            if lens is not None:
                mid = mid + mid @ lens[0].T + lens[1]
            states.append(janus.norm(mid) if mid_norm or lens is not None else mid)
        logits = [row.numpy() for state in states for row in janus.gen_head(state)]
        how = {"alpha": alpha, "cfg_weight": cfg_weight, "apc": apc, "strength": strength}
        scores = fuse(logits, **how, **({} if layer is None else {"beta": beta}))
        noise = gumbel(seed, prompt_index, image_index, step, len(scores))
        drawing = {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
            "entropy_temperature": entropy_temperature,
        }  # fmt: skip
        tokens.append(draw(scores, noise, **drawing))
        if logprobs is not None:
            logprobs.append(log_probs(tokens[-1], logits[0], scores, **drawing))
    return tokens


def both_branches(janus, input_ids, pictures, image_token_id, pad_token_id):
    """Inputs of a question with its pictures, and with pad tokens in their places."""
    places = [place for place, token in enumerate(input_ids) if token == image_token_id]
    ids = [pad_token_id if token == image_token_id else token for token in input_ids]
    blind = janus.embed(torch.tensor([ids]))
    seen = blind.clone()
    seen[0, places] = torch.cat([janus.see(pixels) for pixels in pictures])
    return torch.cat([seen, blind])


@torch.no_grad()
def text_log_probs(janus, inputs, text_ids, *, layer, alpha=0.1, strength=1.0, mid_norm=False):
    """Log-probability of every token of a text after inputs ``(branches, length, hidden)``.

    With DoLa, on the head set of the first branch.
    """
    rows, positions = [], Positions(janus, list(inputs[:, None]), janus.embed, text_ids)
    for place, token in enumerate(text_ids):
        hidden_states = positions.after(text_ids[:place])
        finals = [row.numpy() for row in janus.lm_head(hidden_states[-1])]
        if layer is None:
            rows.append([log_softmax(final)[token] for final in finals])
            continue
        mid = hidden_states[layer]
        mids = [row.numpy() for row in janus.lm_head(janus.norm(mid) if mid_norm else mid)]
        inside = head_set(finals[0], alpha)
        scores = [
            np.where(inside, contrast(final, mid, strength), -np.inf)
            for final, mid in zip(finals, mids)
        ]
        rows.append([log_softmax(row)[token] for row in scores])
    return np.array(rows).T


@torch.no_grad()
def answer(
    janus,
    input_ids,
    pictures,
    *,
    image_token_id,
    pad_token_id,
    eos_token_id,
    max_new_tokens,
    layer=None,
    alpha=0.1,
    strength=1.0,
    mid_norm=False,
    apc="cond",
    cfg_weight=1.0,
    bias=0.0,
    temperature=0.0,
    top_k=None,
    top_p=None,
    seed=0,
    question_index=0,
    guess=(),
    logprobs=None,
):
    """Tokens of one answer: pictures are pixels, in the order of their places in the ids.

    A list ``logprobs`` receives two log-probabilities per token.
    """
    inputs = both_branches(janus, input_ids, pictures, image_token_id, pad_token_id)
    if cfg_weight == 1:
        inputs = inputs[:1]
    positions, tokens = Positions(janus, list(inputs[:, None]), janus.embed, guess), []
    while len(tokens) < max_new_tokens and eos_token_id not in tokens:
        hidden_states = positions.after(tokens)
        states = [hidden_states[-1]]
        if layer is not None:
            mid = hidden_states[layer]
            states.append(janus.norm(mid) if mid_norm else mid)
        logits = [row.numpy() for state in states for row in janus.lm_head(state)]
        if cfg_weight != 1:
            scores = fuse(logits, alpha=alpha, cfg_weight=cfg_weight, apc=apc, strength=strength)
        elif layer is None:
            scores = logits[0]
        else:
            inside = head_set(logits[0], alpha)
            scores = np.where(inside, contrast(*logits, strength), -np.inf)
        noise = gumbel(seed, question_index, 0, len(tokens), len(scores))
        how = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        tokens.append(draw(scores + bias, noise, **how))
        if logprobs is not None:
            logprobs.append(log_probs(tokens[-1], logits[0], scores + bias, **how))
    return tokens
