"""Entries of published question sets, under this project's keys: image, question and label."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from lit_dola.data.entry_file import lines_of, read_entries, read_text
from lit_dola.errors import UserError

Entry = dict[str, Any]
_INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""LLaVA's for SEED-Bench and MMBench."""
_PICTURES = {"imagename": "{}", "data_id": "{}", "imageId": "{}.jpg"}
"""Keys of MM-Vet, SEED-Bench and GQA that name a picture, and the name of its file."""
_VQA_FILE = "COCO_{}_{:012d}.jpg"
_ENOUGH = 3
"""Annotators with whom an answer must agree to count fully (Antol et al. 2015, section 3)."""
_HUMAN = ("human", "user")
_SUFFIXES = (".jpg", ".png", ".jpeg")
_MME_FOLDERS = ("questions_answers_YN", "images")
"""Folders within a category of MME for its questions and its pictures, where they are apart."""


class QuestionForms:
    """The forms of one question file.

    An entry keeps all its keys; those that this project reads are added, and the question of a
    multiple choice lists its options.

    Args:
        path: The question file; annotations of VQAv2 are read if they lie beside it.

    Example:
        >>> forms = QuestionForms(Path("testdev_balanced_questions.json"))
        >>> forms.convert({"imageId": "n161313", "question": "Is it red?", "answer": "no"})["image"]
        'n161313.jpg'
    """

    def __init__(self, path: Path) -> None:
        annotations = path.name.replace("OpenEnded_", "").replace("questions", "annotations")
        self._annotations = path.with_name(annotations)
        self._labels: dict[Any, Any] = {}
        if annotations != path.name and self._annotations.is_file():
            self._labels = dict(read_entries(self._annotations, _vqa_label))

    def convert(self, entry: Any) -> Any:
        """Return an entry with ``image``, ``question`` and ``label`` as far as its form has them.

        Raises:
            UserError: If a form is recognised, but not complete.
        """
        if isinstance(entry, str) and "\t" in entry:
            entry = _mme_line(entry)
        if not isinstance(entry, dict):
            return entry
        found = {**_picture(entry), **_conversation(entry)}
        if (options := _options(entry)) and isinstance(entry.get("question"), str):
            found |= _multiple_choice(entry, options)
        elif self._labels and "question_id" in entry:
            found["label"] = self._label(entry["question_id"])
        elif _is_label(entry.get("answer")) and "imagename" not in entry:  # MM-Vet's are for GPT-4
            found["label"] = entry["answer"]
        return {**entry, **{key: value for key, value in found.items() if key not in entry
                            or key == "question"}}  # fmt: skip

    def _label(self, question_id: Any) -> Any:
        try:
            return self._labels[question_id]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"question_id {question_id!r:.40} is not among its annotations",
                "those of these questions",
                at=self._annotations,
            ) from error


def read_mme(folder: Path, image_dir: Path | None) -> Iterator[tuple[str, Any]]:
    """Yield the entries of MME: a folder for each category, a ``.txt`` of questions per picture.

    Lines are ``question TAB answer``, and the picture has the name of the file; or, as in MME's
    tool, ``picture TAB question TAB answer``, and the file has the name of the category.

    Args:
        folder: All of MME, or one category.
        image_dir: Folder with the same categories for the pictures; None: ``folder``.
    """
    for file in sorted(folder.rglob("*.txt")):
        place = file.relative_to(folder)
        categories = [name for name in (folder.resolve().name, *place.parts[:-1])
                      if name not in _MME_FOLDERS]  # fmt: skip
        for line, text in lines_of(read_text(file)):
            if text.count("\t") == 1:
                picture = _picture_beside(place, folder if image_dir is None else image_dir)
                entry = {**_mme_line(f"{picture}\t{text}"), "category": categories[-1]}
            else:
                entry = {**_mme_line(text), "category": file.stem}
            yield f"{place}: {line}", entry


def _picture_beside(place: Path, folder: Path) -> str:
    """Return the name of the picture of a file of questions, relative to the pictures' folder."""
    parents = (place.parent, place.parent.parent / _MME_FOLDERS[1])
    found = [
        (parent / place.stem).as_posix() + suffix for parent in parents for suffix in _SUFFIXES
    ]
    return next((name for name in found if (folder / name).is_file()), found[0])


def _mme_line(line: str) -> Entry:
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) != 3:
        raise UserError(
            f"{len(cells)} cells",
            "picture, question and answer, with tabs between them",
        )
    return dict(zip(("image", "question", "label"), cells))


def _vqa_label(index: int, entry: Any) -> tuple[Any, Any]:
    """Return the id of a question and its right answers, of which one is enough."""
    try:
        given = Counter(answer["answer"] for answer in entry["answers"])
        right = [answer for answer, count in given.items() if count >= _ENOUGH]
        return entry["question_id"], right or entry["multiple_choice_answer"]
    except (KeyError, TypeError) as error:
        raise UserError(
            "not an annotation of VQAv2", "question_id, answers and multiple_choice_answer"
        ) from error


def _picture(entry: Entry) -> Entry:
    for key, name in _PICTURES.items():
        if isinstance(value := entry.get(key), str):
            return {"image": name.format(value)}
        if isinstance(value, list):  # SEED-Bench-2: several pictures
            return {"image": value}
    split, number = entry.get("data_subtype"), entry.get("image_id")
    if isinstance(split, str) and isinstance(number, int):
        return {"image": _VQA_FILE.format(split.replace("-dev", ""), number)}
    return {}


def _conversation(entry: Entry) -> Entry:
    """Return the question of a conversation of LLaVA: what the human says, once."""
    turns = entry.get("conversations")
    if not isinstance(turns, list):
        return {}
    asked = [
        turn.get("value", turn.get("content"))
        for turn in turns
        if isinstance(turn, dict) and turn.get("from", turn.get("role")) in _HUMAN
    ]
    if len(asked) != 1:
        raise UserError(f"conversations has {len(asked)} questions", "one")
    pictures = entry.get("image")
    count, given = (
        len(pictures) if isinstance(pictures, list) else 1,
        str(asked[0]).count("<image>"),
    )
    if given not in (0, count):
        raise UserError(f"the question has {given} <image>", f"none, or one per picture: {count}")
    return {"question": asked[0]}


def _options(entry: Entry) -> dict[str, str]:
    """Return the options of a multiple choice by letter: SEED-Bench's or MMBench's."""
    found = {}
    for letter in ascii_uppercase:
        option = entry.get(f"choice_{letter.lower()}", entry.get(letter))
        if option is None or not str(option).strip():
            break
        found[letter] = str(option).strip()
    return found if len(found) > 1 else {}


def _multiple_choice(entry: Entry, options: dict[str, str]) -> Entry:
    hint = entry.get("hint")
    lines = [hint.strip()] if isinstance(hint, str) and hint.strip() else []
    lines += [entry["question"].strip(), *(f"{letter}. {text}" for letter, text in options.items())]
    found: Entry = {"question": "\n".join([*lines, _INSTRUCTION])}
    answer = entry.get("answer")
    if isinstance(answer, str) and answer in options:
        found["label"] = [answer, f"{answer}. {options[answer]}"]
    return found


def _is_label(answer: Any) -> bool:
    several = answer if isinstance(answer, list) else [answer]
    return bool(several) and all(isinstance(one, str | int | float) for one in several)
