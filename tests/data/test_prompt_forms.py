"""Prompt files as benchmarks publish them, a few faithful lines each."""

import json
import sys

import pytest

from lit_dola.data.prompt_file import names_of_settings, own_settings, read_prompts
from lit_dola.errors import UserError

FORMS = {
    "PartiPrompts": (
        "PartiPrompts.tsv",
        "Prompt\tCategory\tChallenge\tNote\n"
        "bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings\n"
        '"Deep Learning" written on a wall\tWorld Knowledge\tWriting & Symbols\t\n',
        ["bond", '"Deep Learning" written on a wall'],
        {"Category": "Abstract", "Challenge": "Basic",
         "Note": "Biology-inspired concepts with multiple meanings"},
    ),
    "PartiPrompts as pandas writes it": (
        "p.tsv",
        'Prompt\tCategory\na cat\tAnimals\n"""Hi"", it says\nin two lines"\tArts\n',
        ["a cat", '"Hi", it says\nin two lines'],
        {"Category": "Animals"},
    ),
    "DrawBench": (
        "drawbench.csv",
        'Prompts,Category\r\nA red colored car.,Colors\r\n"A horse, riding an astronaut.",'
        "Conflicting\r\n",
        ["A red colored car.", "A horse, riding an astronaut."],
        {"Category": "Colors"},
    ),
    "WISE": (
        "cultural_common_sense.json",
        '[{"Prompt": "Traditional food of the Mid-Autumn Festival", "Explanation": "Mooncakes",'
        ' "Category": "Cultural knowledge", "Subcategory": "Festival", "prompt_id": 1},'
        ' {"Prompt": "b", "prompt_id": 2}]',
        ["Traditional food of the Mid-Autumn Festival", "b"],
        {"Explanation": "Mooncakes", "Category": "Cultural knowledge", "Subcategory": "Festival",
         "prompt_id": 1},
    ),
    "MJHQ-30K": (
        "meta_data.json",
        '{"72f2": {"category": "people", "prompt": "a portrait"},'
        ' "0a1b": {"category": "food", "prompt": "a soup"}}',
        ["a portrait", "a soup"],
        {"id": "72f2", "category": "people"},
    ),
    "COCO captions": (
        "captions_val2014.json",
        '{"info": {"year": 2014}, "images": [{"id": 391895, "file_name": "x.jpg"}], "licenses": [],'
        ' "annotations": [{"image_id": 203564, "id": 37, "caption": "A bicycle replica."},'
        ' {"image_id": 322141, "id": 49, "caption": "A room. "}]}',
        ["A bicycle replica.", "A room."],
        {"image_id": 203564, "id": 37},
    ),
    "an object of prompts": (
        "p.json", '{"version": 2, "prompts": ["a", {"prompt": "b"}]}', ["a", "b"], {}
    ),
    "pandas, orient=records, lines": (
        "p.json", '{"caption":"a","n":1}\n{"caption":"b","n":2}\n', ["a", "b"], {"n": 1}
    ),
    "GenEval": (
        "evaluation_metadata.jsonl",
        '{"tag": "single_object", "include": [{"class": "bench", "count": 1}],'
        ' "prompt": "a photo of a bench"}\n{"tag": "counting", "prompt": "b"}\n',
        ["a photo of a bench", "b"],
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}]},
    ),
    "GenEval 2": (
        "geneval2_data.jsonl",
        '{"prompt": "four metal dogs", "atom_count": 3, "vqa_list": [["How many dogs?", "4"]],'
        ' "skills": ["count"]}\n{"prompt": "b"}\n',
        ["four metal dogs", "b"],
        {"atom_count": 3, "vqa_list": [["How many dogs?", "4"]], "skills": ["count"]},
    ),
    "T2I-CompBench": (
        "color_val.txt",
        "a green bench and a blue bowl\r\na red car\r\n",
        ["a green bench and a blue bowl", "a red car"],
        {},
    ),
    "HPSv2": ("anime.json", '["a girl with a sword", "b"]', ["a girl with a sword", "b"], {}),
    "a table of Excel": (
        "p.csv", '\ufeff"ID","PROMPT "\r\n"7","a ""red"" cat"\r\n\r\n"8","b"\r\n',
        ['a "red" cat', "b"], {"ID": "7"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(prompt_file, form, encoding):
    name, content, texts, metadata = FORMS[form]
    prompts = read_prompts(prompt_file(content.removeprefix("\ufeff").encode(encoding), name))
    assert [prompt.text for prompt in prompts] == texts
    assert prompts[0].metadata == metadata


@pytest.mark.parametrize("key", ["title", " TITLE "])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "Prompt,Title\nx,a\ny,b\n"),
        ("p.json", '[{"prompt": "x", "title": "a"}, {"Title": "b"}]'),
        ("p.jsonl", '{"title": "a"}\n{"title": "b"}\n'),
    ],
)
def test_another_key_may_hold_the_prompt(prompt_file, key, name, content):
    prompts = read_prompts(prompt_file(content, name), key=key)
    assert [prompt.text for prompt in prompts] == ["a", "b"]


ERRORS = {
    "no column": ("p.csv", "id,title\n1,a\n", r"line 2: no prompt among 'id', 'title'; expected one"
                  " of the keys prompt, text, caption, or data.prompt_key to name it"),
    "no prompt in a row": ("p.csv", "id,prompt\n1,a\n2,\n", "line 3: no prompt among 'id'; exp"),
    "a quote that does not end": ("p.csv", 'prompt\n"a\n', "not a table: unexpected end of data"),
    "an unknown object": ("p.json", '{"data": ["a"], "n": 3}', "found an object with the keys"
                          " 'data', 'n'; expected id -> prompt, or one of the keys prompts,"
                          " questions, annotations with a list"),
    "half of UTF-16": ("p.json", b"\xff\xfe[\x00\"", "not UTF-16: truncated data at byte"),
    "a head alone": ("p.tsv", "Prompt\tNote\n", "empty; expected at least one entry"),
    "a comma in a text": ("p.csv", "prompt\na red circle, and a blue square\n", "line 2: 2 cells"),
    "a comma in one of many": ("p.csv", "id,prompt\n1,a\n2,b, c\n", "line 3: 3 cells, but 2"),
    "a tab in a text": ("p.tsv", "prompt\tid\na\tb\t1\n", "line 2: 3 cells, but 2 columns"),
    "a semicolon in a text": ("p.csv", "prompt;id\na; b;1\n", "line 2: 3 cells, but 2 columns"),
    "a text of two lines before it": ("p.csv", 'prompt,n\n"a\nb",1\nc,2,3\n', "line 4: 3 cells"),
    "a name twice": ("p.csv", "prompt,prompt\na,b\n", "two columns are called 'prompt';"),
    "a name twice with spaces": ("p.tsv", "id\t id \tprompt\n1\t2\ta\n", "two columns are called"),
    "not Parquet": ("p.parquet", "x" * 50, "not readable as Parquet: "),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_read_is_one_line(prompt_file, case):
    name, content, message = ERRORS[case]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = prompt_file(content, name)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_skipped_rows_keep_the_indices_of_the_others(prompt_file):
    skipped = []
    prompts = read_prompts(prompt_file("prompt,n\na,1\n,2\nb,3\n", "p.csv"), skipped)
    assert [(prompt.index, prompt.text) for prompt in prompts] == [(0, "a"), (2, "b")]
    assert skipped[0].reason.startswith("line 3: no prompt")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from datetime import date

    from pyarrow import parquet

    rows = [
        {"Prompt": "a", "n": 1, "day": date(2024, 5, 1), "image": b"\x00\x01", "tags": ["x"]},
        {"Prompt": "b", "n": None, "day": None, "image": None, "tags": []},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    prompts = read_prompts(tmp_path / "p.parquet")
    assert [prompt.text for prompt in prompts] == ["a", "b"]
    assert prompts[0].metadata == {"n": 1, "day": "2024-05-01", "tags": ["x"]}


def test_parquet_needs_a_package(prompt_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError, match=r'pyarrow is not installed; pip install -e "\.\[parquet\]"'
    ):
        read_prompts(prompt_file("x", "p.parquet"))


def test_a_folder_of_lists_has_the_prompts_of_all(tmp_path):
    """HPSv2's: the style is the name of the file."""
    for style in ("photo", "anime"):
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} 0", f"{style} 1"]))
    (tmp_path / "more.csv").write_text("prompt,style\na,b\n")
    prompts = read_prompts(tmp_path)
    assert [(p.index, p.text, p.metadata) for p in prompts] == [
        (0, "anime 0", {"style": "anime", "style_index": 0}),
        (1, "anime 1", {"style": "anime", "style_index": 1}),
        (2, "a", {"style": "b", "style_index": 0}),
        (3, "photo 0", {"style": "photo", "style_index": 0}),
        (4, "photo 1", {"style": "photo", "style_index": 1}),
    ]  # fmt: skip
    (tmp_path / "photo.json").write_text("[3]")
    with pytest.raises(UserError, match=r"photo\.json: entry 0: found a number; expected a string"):
        read_prompts(tmp_path)
    (tmp_path / "photo.json").write_text("[")
    with pytest.raises(UserError, match=rf"^{tmp_path}: photo\.json: line 1, column 2: not JSON"):
        read_prompts(tmp_path)


def test_a_folder_says_what_was_not_read(tmp_path):
    for name in ("0.txt", "1.txt", "notes.md", "list.json", "sub/2.txt", ".hidden", "z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    notes = []
    assert len(read_prompts(tmp_path, notes=notes)) == 2
    assert notes == [f"{tmp_path}: not read: list.json, notes.md, sub and 1 more"]


@pytest.mark.parametrize(
    ("metadata", "names", "own"),
    [
        ({}, [], (None, None)),
        ({"seed": 7, "negative_prompt": "blurry"}, ["seed", "negative_prompt"], (7, "blurry")),
        ({"Seed": "42", "Negative_Prompt": "x"}, ["seed", "negative_prompt"], (42, "x")),
        ({"seed": None}, ["seed"], (None, None)),
    ],
)
def test_settings_of_an_entry(metadata, names, own):
    assert names_of_settings(metadata) == names
    assert own_settings(metadata) == own


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"seed": 1.5}, r"seed is 1\.5; expected an integer, 0 <= seed <= 4294967295"),
        ({"seed": -1}, "seed is -1; expected"),
        ({"seed": 2**32}, "seed is 4294967296; expected"),
        ({"seed": True}, "seed is True; expected"),
        ({"seed": "x"}, "seed is 'x'; expected"),
        ({"negative_prompt": 3}, "negative_prompt is a number; expected a text"),
    ],
)
def test_settings_that_cannot_be(metadata, message):
    with pytest.raises(UserError, match=message):
        own_settings(metadata)


def test_a_row_with_too_many_cells_is_skipped_where_asked(prompt_file):
    skipped = []
    prompts = read_prompts(prompt_file("prompt,n\na,1\nb, c,2\nd,3\n", "p.csv"), skipped)
    assert [(prompt.index, prompt.text) for prompt in prompts] == [(0, "a"), (2, "d")]
    assert skipped[0].reason.startswith("line 3: 3 cells")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("p.csv", ["prompt;n", "a, b;1", "c;2"]),
        ("p.csv", ["prompt\tn", "a, b\t1", "c\t2"]),
        ("p.csv", ["prompt,n,", '"a, b",1,', "c,2,"]),
        ("p.csv", [",prompt,n", '0,"a, b",1', "1,c,2"]),
        ("p.tsv", ["prompt\tn", "a, b\t1", "c\t2"]),
        ("p.txt", ["a, b", "c"]),
        ("p.jsonl", ['"a, b"', '{"prompt": "c"}']),
        ("p.json", ['{"prompt": "a, b"}', '{"prompt": "c"}']),
    ],
)
def test_any_separator_and_any_line_end(prompt_file, name, lines, end):
    prompts = read_prompts(prompt_file(end.join(lines) + end, name))
    assert [prompt.text for prompt in prompts] == ["a, b", "c"]
    assert all(prompt.metadata in ({}, {"n": "1"}, {"n": "2"}) for prompt in prompts)


PICTURE = {"bytes": b"\x89PNG", "path": "a.png"}
NOT_JSON = [
    ({"n": float("nan")}, {"n": None}),
    ({"n": [1.5, float("nan")]}, {"n": [1.5, None]}),
    ({"n": {"deep": [{"x": float("nan")}]}}, {"n": {"deep": [{"x": None}]}}),
    ({"image": PICTURE}, {"image": {"path": "a.png"}}),
    ({"images": [PICTURE, PICTURE]}, {"images": [{"path": "a.png"}] * 2}),
    ({"images": [b"\x00\xff"]}, {"images": []}),
]


@pytest.mark.parametrize(("given", "expected"), NOT_JSON, ids=str)
def test_parquet_with_what_json_has_no_type_for(given, expected, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([{"prompt": "a", **given}])
    parquet.write_table(table, tmp_path / "p.parquet")
    (prompt,) = read_prompts(tmp_path / "p.parquet")
    assert prompt.metadata == expected
    json.dumps(prompt.metadata, allow_nan=False)


def test_parquet_with_infinity_is_skipped_where_asked(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"prompt": "a", "n": float("-inf")}, {"prompt": "b", "n": 1.0}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    with pytest.raises(UserError, match="row 0: found -inf; expected finite numbers"):
        read_prompts(tmp_path / "p.parquet")
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.parquet", [])] == ["b"]
