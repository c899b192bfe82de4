"""The same loop with another head: text, one branch, stop tokens."""

import numpy as np
import pytest
import torch
from transformers import JanusForConditionalGeneration

from lit_dola.decoding.loop import NotFiniteError
from lit_dola.decoding.pool import token_generator
from lit_dola.janus.model import Head
from tests.support import reference
from tests.support.images import PROMPTS
from tests.support.scoring import make_scoring

TOKENS = 40
PAD = 2


class TextJanus:
    """The parts of a Janus that the loop needs to write text."""

    def __init__(self, model):
        self.language_model = model.model.language_model
        embed = self.language_model.embed_tokens
        self.head = Head(lambda states: states, model.lm_head, embed)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return JanusForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float64)


@pytest.fixture(scope="module")
def generate(model):
    janus = TextJanus(model.eval())

    def run(prompts, layer=None, stop_ids=(), tokens=TOKENS, keys=None, **scoring):
        loop = token_generator(
            janus, janus.head, make_scoring(**{"temperature": 0.0, **scoring}), layer=layer,
            max_new_tokens=tokens, stop_ids=stop_ids,
        )  # fmt: skip
        return loop([(ids,) for ids in prompts], keys or [(i, 0) for i in range(len(prompts))])

    return run


@pytest.fixture(scope="module")
def prompts(encoder):
    return [encoder.encode(prompt)[:-1] for prompt in PROMPTS]


def theirs(model, ids, stop_ids=None):
    input_ids = torch.tensor([ids])
    made = model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), generation_mode="text",
        do_sample=False, max_new_tokens=TOKENS, eos_token_id=stop_ids, pad_token_id=PAD,
    )  # fmt: skip
    return made[0, len(ids) :].tolist()


def test_greedy_text_equals_transformers_generate(model, generate, prompts):
    made = generate(prompts)
    assert made.tolist() == [theirs(model, ids) for ids in prompts]
    assert len({tuple(row) for row in made.tolist()}) == len(prompts)


def until_stop(row, stop_ids):
    ends = [place for place, token in enumerate(row) if token in stop_ids]
    return row[: ends[0] + 1] if ends else row


def test_a_sequence_ends_with_its_stop_token(model, generate, prompts):
    """Each stops at its own step, repeats its stop token and does not affect the others."""
    whole = generate(prompts).tolist()
    stop_ids = [whole[0][3], whole[1][9]]
    expected = [until_stop(row, stop_ids) for row in whole]
    assert len({len(row) for row in expected}) > 1
    made = generate(prompts, stop_ids=stop_ids).tolist()
    for row, ids, wanted in zip(made, prompts, expected, strict=True):
        assert until_stop(row, stop_ids) == wanted == theirs(model, ids, stop_ids)
        assert set(row[len(wanted) :]) <= {wanted[-1]}


@pytest.mark.slow
def test_the_loop_ends_early_when_all_have_stopped(generate, prompts):
    row = generate(prompts[:1], tokens=200)[0].tolist()
    made = generate(prompts[:1], tokens=200, stop_ids=[row[2]])
    assert made.tolist() == [row[:3]]


def test_logits_after_the_stop_do_not_matter(model, generate, prompts):
    row = generate(prompts[:1], tokens=8)[0].tolist()
    calls = []

    def poison(_module, _args, hidden_states):
        calls.append(None)
        return hidden_states * float("nan") if len(calls) > 6 else hidden_states

    hook = model.model.language_model.layers[-1].register_forward_hook(poison)
    try:
        with pytest.raises(NotFiniteError):
            generate(prompts[:1], tokens=8)
        calls.clear()
        made = generate(prompts[:1], tokens=8, stop_ids=[row[2]])[0].tolist()
    finally:
        hook.remove()
    assert until_stop(made, [row[2]]) == until_stop(row, [row[2]])


@torch.no_grad()
def plain_dola(model, ids, layer, alpha, key, temperature):
    """DoLa-static on ``lm_head``, step by step in float64."""
    inputs, tokens = list(ids), []
    for step in range(12):
        output = model.model.language_model(
            input_ids=torch.tensor([inputs]), output_hidden_states=True, use_cache=False
        )
        final, mid = (
            model.lm_head(output.hidden_states[index][0, -1]).numpy() for index in (-1, layer)
        )
        inside = reference.head_set(final, alpha)
        scores = np.where(inside, reference.contrast(final, mid), -np.inf)
        noise = reference.gumbel(0, *key, step, len(scores))
        how = {"temperature": temperature, "top_k": None, "top_p": None}
        tokens.append(reference.draw(scores, noise, **how))
        inputs.append(tokens[-1])
    return tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("layer", "alpha"), [(6, 0.1), pytest.param(3, 0.02, marks=pytest.mark.slow)]
)
def test_dola_on_one_branch_equals_the_reference(
    layer, alpha, temperature, model, generate, prompts
):
    keys = [(4, 1), (0, 0), (2, 3)]
    made = generate(
        prompts, layer, tokens=12, keys=keys, alpha=alpha, temperature=temperature
    ).tolist()
    expected = [
        plain_dola(model, ids, layer, alpha, key, temperature) for ids, key in zip(prompts, keys)
    ]
    assert made == expected
