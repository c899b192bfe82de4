"""Right and wrong, the page of answers, and the comparison of two runs."""

import pytest

from lit_dola.errors import UserError
from lit_dola.reports.accuracy import is_right
from lit_dola.reports.answers import write_answers
from lit_dola.reports.compare import compare
from tests.support.pages import write_answers_run, write_images, write_run


@pytest.mark.parametrize(
    ("answer", "label", "expected"),
    [
        ("Yes", "yes", True),
        ("Yes, there is a dog.", "yes", True),
        ("No", "yes", False),
        ("There is not, no.", "no", True),
        ("There is. It is not large.", "yes", True),  # the first sentence counts
        ("A dog", "yes", True),  # as POPE: no negation
        ("Nobody is there", "no", False),  # a word, not a part of one
        ("", "no", False),
        ("red", "Red.", True),
        (" red ", "red", True),
        ("dark red", "red", False),
        ("2", 2, True),
        ("2.", "2", True),
        ("top left", "top-left", True),
        ("cat", ["dog", "cat"], True),
        ("cat", ["dog", "cow"], False),
        ("cat", None, None),
        ("cat", [], None),
        ("cat", {"a": 1}, None),
        ("Yes, there is.", True, True),
        ("No.", True, False),
        ("not at all", False, True),
        ("cat", "", None),
        ("cat", " ", None),
        ("", ["", "cat"], None),
        ("1", 1.0, True),
        ("1", "1.0", True),
        ("1.0", 1, True),
        ("01", 1, True),
        ("+1", 1, True),
        ("1", -1, False),
        ("-1", 1, False),
        ("\u22121", -1, True),
        ("-1.", -1, True),
        ("3.5", "3 5", False),
        ("3.5", 3.5, True),
        ("3.5.", 3.5, True),
        (".5", 0.5, True),
        ("0.5", 5, False),
        ("1,000", 1000, True),
        ("1,5", "15", False),
        ("1e3", 1000.0, True),
        ("1e22", 1e22, True),
        ("5%", 5, False),
        ("10", 1, False),
        ("٣", 3, True),
        ("½", 0.5, False),
        ("C", "C++", False),
        ("c++.", "C++", True),
        ("C", "C#", False),
        ("a & b", "a b", False),
        ("$5", "5", False),
        ("3-5", "3 5", False),
        ("(red)", "red", True),
        ("«rouge» !", "Rouge", True),
        ("it's red", "it s red", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("cafe", "caf\u00e9", False),
        ("\uff12", 2, True),
        ("STRASSE", "straße", True),
        ("कि", "क", False),  # a vowel sign is a letter
        ("か", "が", False),
        ("red,  blue", "red blue", True),
        ("猫。", "猫", True),
        ("...", "red", False),
    ],
)
def test_is_right(answer, label, expected):
    assert is_right(answer, label) is expected


def test_the_page_escapes_and_counts(tmp_path):
    folder = write_answers_run(tmp_path / "run", ["Yes", "No", "<b>no</b>", "yes"])
    write_answers(folder, num_failures=2)
    page = (folder / "index.html").read_text()
    assert "2 of 4 answers are right (50.0 %)" in page
    assert "2 skipped" in page
    assert "<script>alert" not in page
    assert "<b>no</b>" not in page
    assert 'src="../a.png"' in page


def test_many_questions_make_several_pages(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_dola.reports.answers.QUESTIONS_PER_PAGE", 3)
    folder = write_answers_run(tmp_path / "run", ["yes"] * 7)
    write_answers(folder)
    assert sorted(path.name for path in folder.glob("*.html")) == [
        "index-2.html", "index-3.html", "index.html"
    ]  # fmt: skip
    assert "page 2 of 3" in (folder / "index-2.html").read_text()
    monkeypatch.setattr("lit_dola.reports.answers.QUESTIONS_PER_PAGE", 30)
    write_answers(folder)
    assert [path.name for path in folder.glob("*.html")] == ["index.html"]


def test_compare_lists_where_runs_differ(tmp_path):
    one = write_answers_run(tmp_path / "one", ["Yes", "No", "yes"])
    two = write_answers_run(tmp_path / "two", ["Yes", "Yes", "yes", "no"], dola=True)
    notes = compare([str(one), str(two)], str(tmp_path / "page"))
    assert notes == ["1 of 4 answers of two are not in all runs"]
    page = (tmp_path / "page/index.html").read_text()
    assert "3 questions, 1 with different answers" in page
    assert "one: 2 of 3 answers are right" in page
    assert "two: 3 of 3 answers are right" in page
    assert page.count('data-differs="true"') == 1
    assert 'src="../a.png"' in page
    compare([str(one), str(two)], str(tmp_path / "sent"), copy_images=True)
    assert (tmp_path / "sent/images/0/0-a.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert "../a.png" not in (tmp_path / "sent/index.html").read_text()


def test_images_are_not_compared_with_answers(tmp_path):
    answers = write_answers_run(tmp_path / "answers", ["yes"])
    write_run(tmp_path / "images", ["a cat"], images=1)
    write_images(tmp_path / "images", (200, 30, 30))
    told = "answers has answers and .*images has images; expected runs of one kind"
    with pytest.raises(UserError, match=told):
        compare([str(answers), str(tmp_path / "images")], str(tmp_path / "page"))
    with pytest.raises(UserError, match="is the folder of a run"):
        compare([str(answers), str(write_answers_run(tmp_path / "more", ["no"]))], str(answers))
