"""Published question sets are read as their authors distribute them."""

import base64
import csv
import json

import pytest
from PIL import Image

from lit_dola.data.item_file import read_items
from lit_dola.data.pictures import digest_of, read_picture
from lit_dola.data.question_file import read_questions
from lit_dola.data.requests import Failure
from lit_dola.errors import UserError

INSTRUCTION = "Answer with the option's letter from the given choices directly."


def write_picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path, "JPEG")
    return path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(path, image_dir=None):
    return [
        (
            [picture.name for picture in question.pictures],
            question.entry.text,
            question.entry.metadata.get("label"),
        )
        for question in read_questions(path, image_dir)
    ]


def vqa(folder, questions="v2_OpenEnded_mscoco_{}_questions.json",
        annotations="v2_mscoco_{}_annotations.json", split="val2014", image="val2014"):  # fmt: skip
    for number in (42, 581929):
        write_picture(folder / f"COCO_{image}_{number:012}.jpg")
    asked = [{"image_id": 42, "question": "Is it red?", "question_id": 42000},
             {"image_id": 581929, "question": "How many?", "question_id": 581929002}]  # fmt: skip
    about = {"info": {"year": 2015}, "license": {"name": "CC"}, "data_subtype": split}
    if annotations:
        given = {42000: ["yes"] * 7 + ["no"] * 3, 581929002: ["2", "two", *"3456789", "10"]}
        found = [
            {
                "question_id": key,
                "multiple_choice_answer": answers[0],
                "answers": [
                    {"answer": one, "answer_id": place} for place, one in enumerate(answers)
                ],
            }
            for key, answers in given.items()
        ]
        write(folder / annotations.format(split), {**about, "annotations": found[::-1]})
    return write(folder / questions.format(split),
                 {**about, "task_type": "Open-Ended", "questions": asked})  # fmt: skip


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({}, [["yes", "no"], "2"]),
        ({"questions": "questions.json", "annotations": "annotations.json"}, [["yes", "no"], "2"]),
        ({"questions": "OpenEnded_mscoco_{}_questions.json",
          "annotations": "mscoco_{}_annotations.json"}, [["yes", "no"], "2"]),
        ({"annotations": None}, [None, None]),
        ({"annotations": None, "split": "test-dev2015", "image": "test2015"}, [None, None]),
    ],
)  # fmt: skip
def test_vqa(tmp_path, names, labels):
    split = names.get("image", "val2014")
    assert read(vqa(tmp_path, **names)) == [
        ([f"COCO_{split}_000000000042.jpg"], "Is it red?", labels[0]),
        ([f"COCO_{split}_000000581929.jpg"], "How many?", labels[1]),
    ]


def test_vqa_with_the_annotations_of_other_questions(tmp_path):
    path = vqa(tmp_path)
    other = tmp_path / "v2_mscoco_val2014_annotations.json"
    other.write_text(other.read_text().replace("42000", "43000"))
    with pytest.raises(UserError, match=r"entry 0: .*annotations.json: question_id 42000 is not"):
        read_questions(path)
    other.write_text('{"annotations": [{"question_id": 42000}]}')
    with pytest.raises(UserError, match=r"annotations.json: entry 0: not an annotation of VQAv2"):
        read_questions(path)


def test_the_annotations_of_vqa_are_not_questions(tmp_path):
    vqa(tmp_path)
    with pytest.raises(UserError, match="no question among 'data_subtype', 'question_id'"):
        read_questions(tmp_path / "v2_mscoco_val2014_annotations.json")


def test_gqa(tmp_path):
    write_picture(tmp_path / "images/n161313.jpg")
    entry = {"imageId": "n161313", "question": "Is it overcast?", "answer": "no", "semantic": [{}]}
    path = write(tmp_path / "testdev_balanced_questions.json", {"20968379": entry})
    assert read(path, tmp_path / "images") == [(["n161313.jpg"], "Is it overcast?", "no")]


@pytest.mark.parametrize("data_id", ["454816_3321585398", "task1/1.jpg", ["1.jpg", "2.jpg"]])
def test_seed_bench(tmp_path, data_id):
    names = data_id if isinstance(data_id, list) else [data_id]
    for name in names:
        write_picture(tmp_path / name)
    entry = {"answer": "B", "choice_a": "One", "choice_b": "Two", "choice_c": "Three",
             "choice_d": "Four", "data_id": data_id, "data_type": "image",
             "question": "How many towels are in the image?", "question_id": "101669",
             "question_type_id": 5}  # fmt: skip
    path = write(tmp_path / "SEED-Bench.json", {"questions": [entry], "question_type": {"a": 5}})
    text = "How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four\n" + INSTRUCTION
    assert read(path) == [([name.rpartition("/")[2] for name in names], text, ["B", "B. Two"])]


def test_mm_vet_is_for_its_own_judge(tmp_path):
    write_picture(tmp_path / "images/v1_0.png")
    entry = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5",
             "capability": ["ocr", "math"]}  # fmt: skip
    path = write(tmp_path / "mm-vet.json", {"v1_0": entry})
    assert read(path, tmp_path / "images") == [(["v1_0.png"], "What is x?", None)]


@pytest.mark.parametrize("text", ["<image>\nWhat is it?", "What is it?\n<image>", "What is it?"])
def test_a_conversation(tmp_path, text):
    write_picture(tmp_path / "000000033471.jpg")
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "A bus."}]
    entry = {"id": "000000033471", "image": "000000033471.jpg", "conversations": turns}
    path = write(tmp_path / "llava_instruct_150k.json", [entry])
    assert read(path) == [(["000000033471.jpg"], text, None)]


def test_a_conversation_in_the_words_of_a_chat(tmp_path):
    write_picture(tmp_path / "a.jpg")
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A."}]
    path = write(tmp_path / "q.json", [{"image": "a.jpg", "conversations": turns}])
    assert read(path) == [(["a.jpg"], "<image>What?", None)]
    path.write_text(path.read_text().replace("<image>", "<image><image>"))
    with pytest.raises(UserError, match="the question has 2 <image>; expected none, or one per"):
        read(path)


@pytest.mark.parametrize(("turns", "found"), [(0, 0), (2, 1), (4, 2)])
def test_a_conversation_asks_once(tmp_path, turns, found):
    write_picture(tmp_path / "a.jpg")
    said = [{"from": ("human", "gpt")[place % 2], "value": "x"} for place in range(turns)]
    path = write(tmp_path / "q.json", [{"image": "a.jpg", "conversations": said}])
    if found == 1:
        assert len(read(path)) == 1
    else:
        with pytest.raises(UserError, match=f"conversations has {found} questions; expected one"):
            read(path)


def encoded(colour="red", size=(8, 6), kind="JPEG"):
    from io import BytesIO

    file = BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def mmbench(path, rows):
    names = [*dict.fromkeys(name for row in rows for name in row)]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
    return path


ROW = {"index": "241", "question": "Which is it?", "hint": "", "A": "red", "B": "blue", "C": "",
       "D": "", "answer": "A", "category": "attribute", "l2-category": "coarse"}  # fmt: skip


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_mmbench(tmp_path, suffix):
    rows = [
        {**ROW, "image": encoded("red")},
        {**ROW, "index": "1000241", "hint": "Look.", "answer": "B", "image": "241"},
        {**ROW, "index": "242", "C": "green", "image": encoded("blue", kind="PNG")},
    ]
    path = mmbench(tmp_path / f"mmbench_dev_en{suffix}", rows)
    first, again, other = read_questions(path)
    assert first.entry.text == f"Which is it?\nA. red\nB. blue\n{INSTRUCTION}"
    assert again.entry.text == f"Look.\nWhich is it?\nA. red\nB. blue\n{INSTRUCTION}"
    assert other.entry.text == f"Which is it?\nA. red\nB. blue\nC. green\n{INSTRUCTION}"
    labels = [it.entry.metadata["label"] for it in (first, again, other)]
    assert labels == [["A", "A. red"], ["B", "B. blue"], ["A", "A. red"]]
    assert first.pictures == again.pictures
    colours = [read_picture(it.pictures[0]).getpixel((0, 0)) for it in (first, other)]
    assert colours[0][0] > 200 > 100 > colours[0][2]
    assert colours[1] == (0, 0, 255)
    assert first.names == (f"pictures/{digest_of(first.pictures[0])}.jpg",)
    assert other.names[0].endswith(".png")
    assert other.entry.metadata["image"] == other.names[0]


def test_a_large_picture_in_a_table(tmp_path):
    noise = Image.effect_noise((700, 500), 80)
    noise.save(tmp_path / "a.png")
    content = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    assert len(content) > 2**17  # the limit of Python's csv module
    path = mmbench(tmp_path / "mmbench.tsv", [{**ROW, "image": content}])
    (question,) = read_questions(path)
    assert read_picture(question.pictures[0]).size == (700, 500)


def mme(folder, apart=False):
    """MME as it is distributed, in one of the two layouts that its categories have."""
    lines = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    write_picture(folder / ("images" if apart else "") / "0001.png")
    write(folder / ("questions_answers_YN" if apart else "") / "0001.txt", lines)


def test_mme(tmp_path):
    mme(tmp_path / "MME/existence")
    mme(tmp_path / "MME/posters", apart=True)
    questions = read_questions(tmp_path / "MME")
    assert [it.entry.metadata["category"] for it in questions] == [
        "existence", "existence", "posters", "posters"
    ]  # fmt: skip
    assert [it.entry.metadata["label"] for it in questions] == ["Yes", "No", "Yes", "No"]
    assert [it.entry.text[:10] for it in questions] == ["Is it red?", "Is it blue"] * 2
    assert questions[0].names == ("existence/0001.png",)
    assert questions[2].names == ("posters/images/0001.png",)


@pytest.mark.parametrize("apart", [False, True])
def test_one_category_of_mme(tmp_path, apart):
    mme(tmp_path / "posters", apart)
    assert {it.entry.metadata["category"] for it in read_questions(tmp_path / "posters")} == {
        "posters"
    }


def test_the_files_of_mmes_tool(tmp_path):
    write_picture(tmp_path / "images/0001.jpg")
    path = write(tmp_path / "results/color.txt", "0001.jpg\tIs it red? Please answer.\tYes\n")
    expected = [(["0001.jpg"], "Is it red? Please answer.", "Yes")]
    assert read(path, tmp_path / "images") == expected
    assert read(path.parent, tmp_path / "images") == expected
    assert read_questions(path.parent, tmp_path / "images")[0].entry.metadata["category"] == "color"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", "What is it?\n", "line 1: found a string; expected an object"),
        ("q.txt", "a.jpg\tWhat?\tYes\tNo\n", "line 1: 4 cells; expected picture"),
        ("q.json", [{"img": "a.jpg", "question": "x"}], "no image among 'img', 'question'"),
        ("q.json", [{"image": "a.jpg", "q": "x"}], "no question among 'image', 'q'"),
        ("q.json", [{"image_id": 3, "question": "x"}], "no image among 'image_id', 'question'"),
    ],
)
def test_other_forms_are_named(tmp_path, name, content, message):
    write_picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=message):
        read_questions(write(tmp_path / name, content))


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="empty; expected at least one entry"):
        read_questions(tmp_path)


@pytest.mark.parametrize("answer", ["red", 3, ["red", "crimson"], True])
def test_an_answer_is_a_label(tmp_path, answer):
    write_picture(tmp_path / "a.jpg")
    entry = {"image": "a.jpg", "question": "Which?", "answer": answer}
    assert read(write(tmp_path / "q.json", [entry])) == [(["a.jpg"], "Which?", answer)]
    assert read(write(tmp_path / "q.json", [{**entry, "label": "x"}]))[0][2] == "x"


INLINE = {
    "base64": lambda text: text,
    "a data: URL": lambda text: f"data:image/jpeg;base64,{text}",
    "in capitals, with a charset": lambda text: f"DATA:image/jpeg;charset=x;base64,{text}",
    "without a type": lambda text: f"data:;base64,{text}",
    "in lines": lambda text: "\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
    "without its padding": lambda text: text.rstrip("="),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("form", INLINE)
def test_a_picture_in_the_file(tmp_path, form, kind):
    text = INLINE[form](encoded("blue", (5, 7), kind))
    path = write(tmp_path / "q.json", [{"image": text, "question": "What?", "labels": ["a"]}])
    (question,) = read_questions(path)
    picture = read_picture(question.pictures[0])
    assert picture.size == (5, 7)
    assert picture.getpixel((2, 2))[2] > 200
    (item,) = read_items(path)
    assert item.names == question.names
    assert len(item.entry.text) < 60


@pytest.mark.parametrize("nested", ["bytes", "bytes and path", "a list"])
def test_pictures_in_parquet(tmp_path, nested):
    """As the datasets library writes them."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    content = base64.b64decode(encoded("blue", (5, 7), "PNG"))
    image = {"bytes": content, "bytes and path": {"bytes": content, "path": "a.png"},
             "a list": [{"bytes": content, "path": None}] * 2}[nested]  # fmt: skip
    row = {"image": image, "question": "Which?", "answer": "blue", "labels": ["blue", "red"]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "q.parquet")
    (question,) = read_questions(tmp_path / "q.parquet")
    assert len(question.pictures) == (2 if nested == "a list" else 1)
    assert read_picture(question.pictures[-1]).size == (5, 7)
    assert question.entry.metadata["label"] == "blue"
    assert content.hex()[:40] not in json.dumps(question.entry.metadata)
    if nested != "a list":
        (item,) = read_items(tmp_path / "q.parquet")
        assert item.names == question.names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:image/png;base64,iVBORw0KGgo", "not an image|a broken image"),
        ("data:image/png,abc", "expected data: with ;base64,"),
        ("data:image/png;base64,§§§§", "is not base64"),
        ("data:;base64," + base64.b64encode(b"<html>" * 30).decode(), "picture: not an image"),
        ("/9j/" + "A" * 9000, "picture: (not an image|a broken image)"),
        ("/9j/" + "A" * 9000 + "…", "is not base64"),
        ("https://example.org/a.jpg", "expected a path or base64: nothing is fetched"),
    ],
)
def test_what_is_no_picture_is_one_short_line(tmp_path, text, message):
    path = write(tmp_path / "q.json", [{"image": text, "question": "What?"}])
    with pytest.raises(UserError, match=message) as caught:
        read_questions(path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    skipped: list[Failure] = []
    with pytest.raises(UserError, match=message):  # none is left
        read_questions(path, skipped=skipped)
    assert len(skipped) == 1
