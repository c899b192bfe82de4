"""Tables and pictures from a generator: read in full, or one line of error."""

import csv
import io
import json
import random
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lit_dola.data.pictures import LoadedPicture, read_picture
from lit_dola.data.prompt_file import read_prompts
from lit_dola.data.question_file import read_questions
from lit_dola.errors import UserError
from tests.support.questions import write_pictures

pytestmark = pytest.mark.slow
cell = st.text(
    st.sampled_from("ab ,;\t\"'\n\r猫é#=|\u2028") | st.characters(codec="utf-8"), max_size=12
)
DELIMITERS = {".csv": ",", ";.csv": ";", "\t.csv": "\t", ".tsv": "\t"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generated")


def refusal(read, *args):
    """Return the error of reading something in one line; None if there is none."""
    try:
        read(*args)
    except UserError as error:
        return str(error)


def write_table(path, kind, rows, quoting=csv.QUOTE_MINIMAL):
    text = io.StringIO()
    csv.writer(text, delimiter=DELIMITERS[kind], quoting=quoting).writerows(rows)
    path.write_text(text.getvalue(), "utf-8", newline="")
    return path


@given(
    st.sampled_from([*DELIMITERS]),
    st.permutations(["prompt", "note", "id"]),
    st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=5),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_every_cell_of_a_table_arrives(folder, kind, names, rows, quoting):
    path = write_table(folder / f"prompts.{kind[-3:]}", kind, [names, *rows], quoting)
    full = [dict(zip(names, row)) for row in rows if any(text.strip() for text in row)]
    if not full or not all(row["prompt"].strip() for row in full):
        assert refusal(read_prompts, path).startswith(f"{path}: ")
        return
    entries = read_prompts(path)
    assert [entry.text for entry in entries] == [row["prompt"].strip() for row in full]
    for entry, row in zip(entries, full, strict=True):
        assert entry.metadata == {name: row[name] for name in ("note", "id") if row[name]}


@given(
    st.sampled_from([*DELIMITERS]),
    st.lists(st.lists(cell, min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_more_cells_than_columns_are_never_lost(folder, kind, rows):
    path = write_table(folder / f"more.{kind[-3:]}", kind, [["prompt", "note"], *rows])
    if any(text.strip() for row in rows for text in row[2:]):
        assert refusal(read_prompts, path)


@given(st.text(st.sampled_from('promt,;\t"\n\r a猫'), max_size=60), st.sampled_from(["csv", "tsv"]))
def test_any_text_as_a_table(folder, text, suffix):
    path = folder / f"any.{suffix}"
    path.write_text(text, "utf-8", newline="")
    if said := refusal(read_prompts, path):
        assert said.startswith(f"{path}: ")
        assert "\n" not in said


NAMES = [
    "image",
    "question",
    "conversations",
    "A",
    "B",
    "choice_a",
    "choice_b",
    "answer",
    "image_id",
    "data_subtype",
    "data_id",
    "imagename",
    "index",
    "hint",
    "label",
]
TURNS = st.lists(st.sampled_from(["a.png", {"from": "human", "value": "x"}, {"from": 3}, None]))
VALUES = (
    st.none() | st.booleans() | st.integers() | TURNS
    | st.sampled_from(["a.png", "A", "", "data:,", "/9j/", {"a": 1}])
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_keys_of_question_sets(folder, entry):
    write_pictures(folder)
    path = folder / "questions.json"
    path.write_text(json.dumps({"questions": [entry]}))
    if said := refusal(read_questions, path):
        assert said.startswith(f"{path}: entry 0: ")
        assert "\n" not in said


MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "LA", "PA", "I", "F", "I;16"]
FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "WEBP",
    "BMP",
    "TIFF",
    "PPM",
    "TGA",
    "ICO",
    "JPEG2000",
    "DDS",
    "PCX",
]


def encoded(mode, kind, generator):
    """A small noisy picture in a mode and a format; None if Pillow cannot write or read it."""
    noise = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    file = io.BytesIO()
    try:
        noise.convert(mode if mode != "I;16" else "I").convert(mode).save(file, kind)
        Image.open(file).load()
    except (OSError, ValueError, KeyError):
        return None
    return file.getvalue()


def damaged(content, chance):
    """A copy with a few bytes changed, lost or repeated, or a length or a number out of range."""
    damaged = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(len(damaged))
        if (how := chance.randrange(5)) == 0:
            del damaged[place:]
        elif how == 1:
            damaged[place] = chance.randrange(256)
        elif how == 2:
            damaged[place : place + 4] = struct.pack(">I", chance.choice([0, 1, 2**31, 2**32 - 1]))
        elif how == 3:
            del damaged[place : place + chance.randrange(1, 9)]
        else:
            damaged[place:place] = damaged[place : place + 16]
        if not damaged:
            break
    return bytes(damaged)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_pictures(kind, folder):
    """The whole ones are read; the others are read, or refused."""
    chance, generator = random.Random(kind), np.random.default_rng(0)
    path, read = folder / f"picture.{kind.lower()}", 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what is odd
        for mode in MODES:
            content = encoded(mode, kind, generator)
            if content is None:
                continue
            path.write_bytes(content)
            assert read_picture(path).size == (16, 16)
            read += 1
            for _ in range(60):
                path.write_bytes(damaged(content, chance))
                said = refusal(read_picture, path)
                assert said is None or said.startswith(f"{path}: ")
                assert said is None or ("\n" not in said and len(said) < 1200)
    assert read


NUMBERS = st.sampled_from([0, 1, 0.5, -1, 255, 256, 65535, 65536, 1e30, np.nan, np.inf, -np.inf])


@given(
    st.lists(NUMBERS, min_size=1, max_size=6), st.sampled_from([np.float32, np.int32, np.uint16])
)
def test_numbers_are_shades_or_an_error(numbers, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = np.array([numbers]).astype(dtype)
    picture = LoadedPicture(Image.fromarray(pixels))
    wrong = not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 65535
    if wrong:
        assert refusal(read_picture, picture)
        return
    shades = np.asarray(read_picture(picture))[0, :, 0].astype(int)
    order = np.argsort(pixels[0], kind="stable")
    assert (np.diff(shades[order]) >= 0).all()  # brighter numbers are not darker
    assert shades.max() > 0 or pixels.max() < 1 or dtype is np.uint16
