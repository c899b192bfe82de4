"""Prompt files in every form, and everything that can be wrong with one."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_dola.data.prompt_file import read_prompts
from lit_dola.errors import UserError
from lit_dola.runs.files import append_line

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
def test_forms(prompt_file, form, bom):
    content, name, metadata = FORMS[form]
    prompts = read_prompts(prompt_file(bom + content.encode(), name))
    assert [prompt.text for prompt in prompts] == ["a cat", "a dog"]
    assert [prompt.index for prompt in prompts] == [0, 1]
    assert [prompt.metadata for prompt in prompts] == metadata


ERRORS = {
    "empty file": ("", "p.json", "empty; expected at least one entry"),
    "white space only": (" \n ", "p.txt", "empty; expected at least one entry"),
    "empty list": ("[]", "p.json", "empty; expected at least one entry"),
    "empty object": ("{}", "p.json", "empty; expected at least one entry"),
    "bad JSON": ('["a",\n  "b"\n  "c"]', "p.json", "line 3, column 3: not JSON"),
    "bad JSON line": ('"a"\n{"prompt": }\n', "p.jsonl", "line 2: column 12: not JSON"),
    "deep nesting": ("[" * 100_000, "p.json", "not JSON"),
    "huge integer": ("[" + "9" * 10_000 + "]", "p.json", "not JSON"),
    "a number": ("3", "p.json", "found a number; expected a list or an object of entries"),
    "a string": ('"a cat"', "p.json", "found a string; expected a list or an object of entries"),
    "null": ("null", "p.json", "found null; expected a list or an object of entries"),
    "entry of a wrong type": ('["a", 3]', "p.json", "entry 1: found a number; expected a string"),
    "entry is a list": ('["a", ["b"]]', "p.json", "entry 1: found a list; expected a string"),
    "line of a wrong type": ('"a"\ntrue', "p.jsonl", "line 2: found a boolean"),
    "prompt of a wrong type": ('[{"prompt": null}]', "p.json", "entry 0: prompt is null; expected"),
    "nested object": (
        '{"a": {"b": "c"}}',
        "p.json",
        "entry 0: no prompt among 'id', 'b'; expected",
    ),
    "prompt is an object": (
        '[{"text": {"b": "c"}}]',
        "p.json",
        "entry 0: prompt is an object;",
    ),
    "no prompt": (
        '[{"title": "x"}]',
        "p.json",
        "no prompt among 'title'; expected one of",
    ),
    "empty prompt": ('["a", " "]', "p.json", "entry 1: prompt is empty"),
    "not UTF-8": (b'["caf\xe9"]', "p.json", "not UTF-8: invalid continuation byte at byte 5"),
    "UTF-16 without a mark": ('["a"]'.encode("utf-16-le"), "p.json", "not JSON"),
    "half a surrogate pair": (r'["\ud83d"]', "p.json", "entry 0: prompt has half a surrogate pair"),
    "half a pair in metadata": (
        r'[{"prompt": "a", "tags": ["\ud83d"]}]',
        "p.json",
        "entry 0: metadata has half a surrogate pair",
    ),
    "an overflow": ('[{"prompt": "a", "weight": 1e400}]', "p.json", "1e400 is too large"),
    "a negative overflow": ('{"prompt": "a", "w": [-1e999]}', "p.jsonl", "-1e999 is too large"),
    "deep metadata": (
        '[{"prompt": "a", "tags": ' + "[" * 101 + "]" * 101 + "}]",
        "p.json",
        "entry 0: metadata is nested too deeply; expected at most 100 levels",
    ),
    "NaN": ('[{"prompt": "a", "weight": NaN}]', "p.json", "not JSON: NaN is not a JSON value"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_file_and_the_entry(prompt_file, case):
    content, name, message = ERRORS[case]
    path = prompt_file(content, name)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_paths(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json: not readable: No such file"):
        read_prompts(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match=r"a folder without prompts; expected \.txt files with one"):
        read_prompts(tmp_path)


def test_a_folder_holds_a_prompt_a_file(tmp_path):
    for name, text in (("b10.txt", "a dog\n"), ("a9.txt", "a cat"), ("notes.md", "not a prompt")):
        (tmp_path / name).write_text(text)
    prompts = read_prompts(tmp_path)
    assert [(p.index, p.text, p.metadata) for p in prompts] == [
        (0, "a cat", {"id": "a9"}),
        (1, "a dog", {"id": "b10"}),
    ]
    (tmp_path / "c.txt").write_text(" ")
    with pytest.raises(UserError, match=r"c\.txt: empty; expected at least one entry"):
        read_prompts(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '[{"id": null, "prompt": "a"}, {"id": null, "prompt": "b"}]',
        '[{"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"}]',  # COCO has several captions each
        '{"x": "a", "x": "b"}',
        '[{"id": [1], "prompt": "a"}, {"id": [1], "prompt": "b"}]',
    ],
)
def test_ids_may_repeat(prompt_file, text):
    assert [prompt.text for prompt in read_prompts(prompt_file(text))] == ["a", "b"]


def test_metadata_may_be_as_deep_as_the_limit(prompt_file):
    deep = "[" * 99 + "]" * 99
    (prompt,) = read_prompts(prompt_file('[{"prompt": "a", "tags": ' + deep + "}]"))
    assert json.dumps(prompt.metadata["tags"]) == deep


def test_hidden_files_of_a_folder_are_no_prompts(tmp_path):
    for name in ("._0.txt", ".DS_Store", "0.txt", "1.TXT", "notes.md", "folder.txt/2.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"the text of {name}")
    prompts = read_prompts(tmp_path)
    assert [(p.index, p.metadata["id"]) for p in prompts] == [(0, "0"), (1, "1")]


@pytest.mark.parametrize("name", ["P.JSONL", "p.Jsonl", "P.NDJSON", "p.JSON", "p.TXT"])
def test_suffixes_are_compared_without_case(prompt_file, name):
    text = {"json": '["a", "b"]', "txt": "a\nb"}.get(name[2:].lower(), '"a"\n"b"')
    assert [prompt.text for prompt in read_prompts(prompt_file(text, name))] == ["a", "b"]


def test_bad_entries_are_set_aside_where_asked(prompt_file):
    skipped = []
    path = prompt_file(
        '"a"\n{"prompt": }\n\n3\n{"prompt": "d", "id": 1}\n{"prompt": 5, "id": 1}', "p.jsonl"
    )
    assert [(prompt.index, prompt.text) for prompt in read_prompts(path, skipped)] == [
        (0, "a"),
        (3, "d"),
    ]
    assert [(failure.prompt_index, failure.reason[:25]) for failure in skipped] == [
        (1, "line 2: column 12: not JS"),
        (2, "line 4: found a number; e"),
        (4, "line 6: prompt is a numbe"),
    ]
    with pytest.raises(UserError, match=r"entry 1: found a number"):
        read_prompts(prompt_file("[2, 3]"), [])  # nothing is left


def check_any(path):
    """A file either loads, and can be written as metadata, or causes one line of error."""
    for skipped in (None, []):
        try:
            prompts = read_prompts(path, skipped)
        except UserError as error:
            prompts, message = None, str(error)
        if prompts is None:
            assert message.startswith(f"{path}: ")
            assert len(message.splitlines()) == 1
            continue
        places = [it.index for it in prompts] + [it.prompt_index for it in skipped or ()]
        assert sorted(places) == list(range(len(places)))
        assert all(prompt.text.strip() for prompt in prompts)
        for prompt in prompts:
            append_line(path.with_name("metadata.0.jsonl"), asdict(prompt))


text = st.text(st.characters(codec=None)) | st.sampled_from(["\ud83d", "x" * 100_000, " ", "id"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: (
        st.lists(inner) | st.dictionaries(text | st.sampled_from(["prompt", "text", "id"]), inner)
    ),
    max_leaves=20,
)
suffixes = st.sampled_from([".json", ".jsonl", ".txt"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


@given(json_values, suffixes)
@pytest.mark.slow
def test_any_json_loads_or_is_one_line_of_error(folder, document, suffix):
    path = folder / f"prompt{suffix}"
    if suffix == ".jsonl" and isinstance(document, list):
        path.write_text("\n".join(map(json.dumps, document)))
    else:
        path.write_text(json.dumps(document))
    check_any(path)


@given(
    st.binary()
    | st.lists(
        st.sampled_from(
            [
                b"[",
                b"{",
                b'"',
                b":",
                b",",
                b"a",
                b"\xff",
                b"\\",
                b"\n",
                b"1e999",
                b'"prompt"',
                b"]",
                b"}",
                b"\xef\xbb\xbf",
            ]
        )
    ).map(b"".join),
    suffixes,
)
@pytest.mark.slow
def test_any_bytes_load_or_are_one_line_of_error(folder, content, suffix):
    path = folder / f"prompt{suffix}"
    path.write_bytes(content)
    check_any(path)


@pytest.mark.parametrize("depth", [*range(900, 1010, 7), 5000, 100_000])
def test_any_nesting_loads_or_is_one_line_of_error(folder, depth):
    """Near the limit it can be read and not written: that shows at once, not at the end."""
    nested = "[" * depth + "]" * depth
    path = folder / "prompt.json"
    path.write_text(f'[{{"prompt": "a", "metadata": {nested}}}]')
    check_any(path)
