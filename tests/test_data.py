"""Prompt files in every form, and everything that can be wrong with one."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_dola.data import PromptDataModule, read_prompts
from lit_dola.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="prompt.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


FORMS = {
    "list of strings": ('["a cat", " a dog "]', "p.json", [{}, {}]),
    "list of objects": (
        '[{"prompt": "a cat", "tag": "x"}, {"prompt": "a dog", "n": 2}]',
        "p.json",
        [{"tag": "x"}, {"n": 2}],
    ),
    "text and caption": ('[{"text": "a cat"}, {"caption": "a dog"}]', "p.json", [{}, {}]),
    "strings and objects": ('["a cat", {"text": "a dog", "id": 7}]', "p.json", [{}, {"id": 7}]),
    "id to prompt": ('{"x": "a cat", "y": "a dog"}', "p.json", [{"id": "x"}, {"id": "y"}]),
    "prompt before text": (
        '[{"text": "t", "prompt": "a cat"}, {"caption": "c", "text": "a dog"}]',
        "p.json",
        [{"text": "t"}, {"caption": "c"}],
    ),
    "JSON Lines": (
        '{"tag": "single_object", "prompt": "a cat"}\n\n{"prompt": "a dog"}\n',
        "p.jsonl",
        [{"tag": "single_object"}, {}],
    ),
    "JSON Lines of strings": ('"a cat"\r\n"a dog"\r\n', "p.jsonl", [{}, {}]),
    "plain text": ("a cat\n\n  a dog\r\n", "p.txt", [{}, {}]),
}


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(write, form, bom):
    content, name, metadata = FORMS[form]
    prompts = read_prompts(write(bom + content.encode(), name))
    assert [prompt.text for prompt in prompts] == ["a cat", "a dog"]
    assert [prompt.prompt_index for prompt in prompts] == [0, 1]
    assert [prompt.metadata for prompt in prompts] == metadata


ERRORS = {
    "empty file": ("", "p.json", "empty; expected at least one prompt"),
    "white space only": (" \n ", "p.txt", "empty; expected at least one prompt"),
    "empty list": ("[]", "p.json", "empty; expected at least one prompt"),
    "empty object": ("{}", "p.json", "empty; expected at least one prompt"),
    "bad JSON": ('["a",\n  "b"\n  "c"]', "p.json", "line 3, column 3: not JSON"),
    "bad JSON line": ('"a"\n{"prompt": }\n', "p.jsonl", "line 2, column 12: not JSON"),
    "deep nesting": ("[" * 100_000, "p.json", "not JSON"),
    "huge integer": ("[" + "9" * 10_000 + "]", "p.json", "not JSON"),
    "a number": ("3", "p.json", "found a number; expected a list or an object of prompts"),
    "a string": ('"a cat"', "p.json", "found a string; expected a list or an object of prompts"),
    "null": ("null", "p.json", "found null; expected a list or an object of prompts"),
    "entry of a wrong type": ('["a", 3]', "p.json", "entry 1: found a number; expected a string"),
    "entry is a list": ('["a", ["b"]]', "p.json", "entry 1: found a list; expected a string"),
    "line of a wrong type": ('"a"\ntrue', "p.jsonl", "line 2: found a boolean"),
    "prompt of a wrong type": ('[{"prompt": null}]', "p.json", "entry 0: prompt is null; expected"),
    "nested object": ('{"a": {"b": "c"}}', "p.json", "entry 0: prompt is an object; expected"),
    "no prompt": ('[{"title": "x"}]', "p.json", "no prompt; expected one of the keys prompt, text"),
    "empty prompt": ('["a", " "]', "p.json", "entry 1: prompt is empty"),
    "duplicate ids": (
        '[{"id": 1, "prompt": "a"}, {"id": 2, "prompt": "b"}, {"id": 1, "prompt": "c"}]',
        "p.json",
        "entry 2: id 1 is also that of entry 0",
    ),
    "duplicate keys": ('{"a": "x", "a": "y"}', "p.json", 'entry 1: id "a" is also that of entry 0'),
    "not UTF-8": (b'["caf\xe9"]', "p.json", "not UTF-8: invalid continuation byte at byte 5"),
    "UTF-16": ('["a"]'.encode("utf-16"), "p.json", "not UTF-8"),
    "half a surrogate pair": (r'["\ud83d"]', "p.json", "entry 0: prompt has half a surrogate pair"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_file_and_the_entry(write, case):
    content, name, message = ERRORS[case]
    path = write(content, name)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_paths(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json: not readable: No such file"):
        read_prompts(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="not readable: Is a directory"):
        read_prompts(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("prompt"), inner),
    max_leaves=20,
)


@given(json_values)
def test_any_json_loads_or_is_one_line_of_error(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("any") / "prompt.json"
    path.write_text(json.dumps(document))
    try:
        prompts = read_prompts(path)
    except UserError as error:
        prompts, message = None, str(error)
    if prompts is None:
        assert len(message.splitlines()) == 1
    else:
        assert [prompt.prompt_index for prompt in prompts] == list(range(len(prompts)))
        assert all(prompt.text.strip() for prompt in prompts)


def requests(path, tiny_checkpoint, **settings):
    data = PromptDataModule(str(path), str(tiny_checkpoint), **{"images_per_batch": 8, **settings})
    data.prepare_data()
    data.setup("predict")
    return list(data.predict_dataloader())


def test_batches_are_bounded_and_hold_every_image_once(write, tiny_checkpoint, encoder):
    path = write('["a cat", "a dog", "a bird"]')
    batches = requests(path, tiny_checkpoint, parallel_size=3, images_per_batch=4)
    assert [len(batch) for batch in batches] == [4, 4, 1]
    images = [image for batch in batches for image in batch]
    assert sorted((image.prompt.prompt_index, image.image_index) for image in images) == [
        (prompt, image) for prompt in range(3) for image in range(3)
    ]
    for image in images:
        assert image.input_ids == encoder.encode(["a cat", "a dog", "a bird"][image.prompt[0]])


def test_prompts_of_like_length_share_a_batch(write, tiny_checkpoint):
    prompts = ["a cat" + " and a dog" * (i % 4) for i in range(16)]
    batches = requests(write(json.dumps(prompts)), tiny_checkpoint, parallel_size=2)
    lengths = [{len(image.input_ids) for image in batch} for batch in batches]
    assert [len(some) for some in lengths] == [1] * 4  # no padding at all
    assert sorted(lengths, key=min) == lengths
    first = [(image.prompt.prompt_index, image.image_index) for image in batches[0]]
    assert first == [(i, j) for i in (0, 4, 8, 12) for j in (0, 1)]  # else the file's order


def test_auto_asks_the_model_and_takes_no_more_than_there_are(write, tiny_checkpoint):
    data = PromptDataModule(str(write('["a", "b", "c"]')), str(tiny_checkpoint), parallel_size=4)
    data.setup("predict")
    for fitting, world_size, expected in [(5, 1, 5), (64, 1, 12), (64, 2, 6), (64, 5, 3)]:
        model = SimpleNamespace(images_that_fit=lambda requests, fitting=fitting: fitting)
        data.trainer = SimpleNamespace(lightning_module=model, world_size=world_size)
        assert data.predict_dataloader().batch_size == expected


def test_a_prompt_longer_than_the_context_less_the_image_tokens(write, tiny_checkpoint, encoder):
    longest = 1024 - 16
    text = "a " * 2000
    while len(encoder.encode(text)) > longest:
        text = text[:-2]
    assert len(encoder.encode(text)) == longest
    assert requests(write(json.dumps(["x", text])), tiny_checkpoint)
    path = write(json.dumps(["x", text + "a"]))
    with pytest.raises(UserError) as caught:
        requests(path, tiny_checkpoint)
    message = str(caught.value)
    assert message.startswith(f"{path}: entry 1: prompt has ")
    assert "expected at most 1008 (the model's context of 1024 less its 16 image tokens)" in message
