"""Requests: every image once, over batches and ranks; prompts that do not fit."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_dola.data.base import ContiguousSampler
from lit_dola.data.prompts import PromptDataModule
from lit_dola.data.requests import (
    EncodedPrompt,
    Entry,
    ImageRequest,
    ImageRequests,
    Selection,
)
from lit_dola.errors import UserError
from lit_dola.tasks.generate import LitDoLa


def prompts_of(path, tiny_checkpoint, on_error="stop", **settings):
    data = PromptDataModule(str(path), on_error=on_error)
    data.attach(LitDoLa(str(tiny_checkpoint), **settings))
    return data


def requests(path, tiny_checkpoint, **settings):
    data = prompts_of(path, tiny_checkpoint, **{"images_per_batch": 8, **settings})
    data.prepare_data()
    data.setup("predict")
    return list(data.predict_dataloader())


def test_batches_are_bounded_and_hold_every_image_once(prompt_file, tiny_checkpoint, encoder):
    path = prompt_file('["a cat", "a dog", "a bird"]')
    batches = requests(path, tiny_checkpoint, parallel_size=3, images_per_batch=4)
    assert [len(batch) for batch in batches] == [4, 4, 1]
    images = [image for batch in batches for image in batch]
    assert sorted((image.entry.index, image.image_index) for image in images) == [
        (prompt, image) for prompt in range(3) for image in range(3)
    ]
    for image in images:
        assert image.input_ids == encoder.encode(["a cat", "a dog", "a bird"][image.entry.index])


def test_prompts_of_like_length_share_a_batch(prompt_file, tiny_checkpoint):
    prompts = ["a cat" + " and a dog" * (i % 4) for i in range(16)]
    batches = requests(prompt_file(json.dumps(prompts)), tiny_checkpoint, parallel_size=2)
    lengths = [{len(image.input_ids) for image in batch} for batch in batches]
    assert [len(some) for some in lengths] == [1] * 4  # no padding at all
    assert sorted(lengths, key=min) == lengths
    first = [(image.entry.index, image.image_index) for image in batches[0]]
    assert first == [(i, j) for i in (0, 4, 8, 12) for j in (0, 1)]  # else the file's order


def test_auto_leaves_the_batch_size_to_the_model(prompt_file, tiny_checkpoint):
    data = prompts_of(prompt_file('["a", "b"]'), tiny_checkpoint)
    data.setup("predict")
    assert data.plan.batch_size is None
    data.plan.batch_size = 5
    assert data.predict_dataloader().batch_size == 5


@pytest.mark.slow
def test_a_prompt_longer_than_the_context_less_the_image_tokens(
    prompt_file, tiny_checkpoint, encoder
):
    longest = 1024 - 16
    text = "a " * 2000
    while len(encoder.encode(text)) > longest:
        text = text[:-2]
    assert len(encoder.encode(text)) == longest
    assert requests(prompt_file(json.dumps(["x", text])), tiny_checkpoint)
    path = prompt_file(json.dumps(["x", text + "a"]))
    with pytest.raises(UserError) as caught:
        requests(path, tiny_checkpoint)
    message = str(caught.value)
    assert message.startswith(f"{path}: entry 1: prompt has ")
    assert (
        "expected at most 1008 (the model's context of 1024 minus its 16 image tokens)" in message
    )


@given(st.integers(0, 60), st.integers(1, 9))
def test_ranks_share_every_request_once(count, world_size):
    """Also fewer requests than ranks; neighbours, which are of one prompt, stay together."""
    shares = [ContiguousSampler([None] * count, world_size, rank) for rank in range(world_size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    even = [
        ContiguousSampler([None] * count, world_size, rank, even=True) for rank in range(world_size)
    ]
    assert {index for share in even for index in share} == set(range(count))
    assert len({len(share) for share in even}) == 1
    assert sum(map(len, even)) - count < world_size


def test_bad_entries_are_skipped_where_the_user_says_so(prompt_file, tiny_checkpoint):
    """What is left keeps its place, on which its images depend."""
    path = prompt_file(json.dumps(["a", 3, "b " * 2000, {"x": 1}, "c"]))
    data = prompts_of(path, tiny_checkpoint, parallel_size=2, on_error="skip")
    data.setup("predict")
    made = [(request.entry.index, request.entry.text) for request in data.plan.requests]
    assert made == [(0, "a")] * 2 + [(4, "c")] * 2
    assert [failure.prompt_index for failure in data.plan.failures] == [1, 3, 2]
    reasons = sorted(failure.reason for failure in data.plan.failures)
    assert reasons[0] == "entry 1: found a number; expected a string or an object"
    assert reasons[1].startswith("entry 2: prompt has 2008 tokens; expected at most 1008")
    data.setup("predict")  # afresh
    assert len(data.plan.failures) == 3
    data.on_error = "stop"
    with pytest.raises(UserError, match=r"prompt\.json: entry 1: found a number"):
        data.setup("predict")


@given(st.lists(st.integers(1, 5), max_size=6), st.integers(1, 4), st.data())
def test_requests_that_are_made_when_asked_for_are_a_list(lengths, parallel_size, data):
    prompts = [
        EncodedPrompt(Entry(i, str(i), {}), [0] * length, seed=i % 2 or None)
        for i, length in enumerate(lengths)
    ]
    lazy = ImageRequests(prompts, range(parallel_size))
    plain = [
        ImageRequest(it.entry, it.input_ids, k, it.seed)
        for it in prompts
        for k in range(parallel_size)
    ]
    assert len(lazy) == len(plain)
    assert list(lazy) == plain
    assert [lazy[place] for place in range(-len(plain), len(plain))] == plain * 2
    assert lazy[1:-1] == plain[1:-1]
    with pytest.raises(IndexError):
        lazy[len(plain)]
    places = data.draw(st.lists(st.sampled_from(range(len(plain))))) if plain else []
    some = Selection(lazy, places)
    assert list(some) == [plain[place] for place in places]
    assert some[:2] == [plain[place] for place in places[:2]]
