"""The page of answers: of one run, or of several side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_dola.data.requests import RequestKey
from lit_dola.reports.accuracy import is_right
from lit_dola.reports.html import image_address, page_file, write_page
from lit_dola.runs.answers import AnswerRecord
from lit_dola.runs.records import common_settings

QUESTIONS_PER_PAGE = 5_000


class AnswerRun(NamedTuple):
    """The answers of a run."""

    name: str
    folder: Path
    records: dict[RequestKey, AnswerRecord]


def write_answers(folder: Path, num_failures: int = 0) -> None:
    """Write the page of a run, ``index.html``, from its ``answers.jsonl``.

    Args:
        folder: Folder of a run that has ended, so that its records are merged and in order.
        num_failures: Lines of ``errors.jsonl``.
    """
    records = {record.key: record for record in AnswerRecord.read(folder)}
    run = AnswerRun(folder.resolve().name, folder, records)
    settings = common_settings(run.records.values())
    write_answer_pages(
        folder,
        [run],
        [*run.records],
        settings=[(name, [value]) for name, value in settings.items()],
        num_failures=num_failures,
    )


def write_answer_pages(
    output: Path,
    runs: Sequence[AnswerRun],
    keys: Sequence[RequestKey],
    *,
    settings: Sequence[tuple[str, Sequence[Any]]],
    num_failures: int = 0,
    notes: Sequence[str] = (),
    copy_images: bool = False,
) -> None:
    """Write a page of questions, with the answer of each run.

    After :data:`QUESTIONS_PER_PAGE` questions it continues in ``index-2.html``.

    Args:
        output: Folder of the page.
        runs: The runs.
        keys: Questions that all runs have answered, in order.
        settings: Names of settings and the values of each run.
        num_failures: Lines of ``errors.jsonl``.
        notes: Mismatches between the runs.
        copy_images: Copy the pictures next to the page.
    """
    questions = [_question(runs, key, output, copy_images) for key in keys]
    parts = [
        questions[first : first + QUESTIONS_PER_PAGE]
        for first in range(0, len(questions), QUESTIONS_PER_PAGE)
    ] or [[]]
    files = [page_file(number) for number in range(1, len(parts) + 1)]
    rights = [[question["answers"][place]["right"] for question in questions] for place in
              range(len(runs))]  # fmt: skip
    for number, (file, part) in enumerate(zip(files, parts), start=1):
        write_page(
            output / file,
            "answers.html",
            title=" / ".join(run.name for run in runs),
            runs=[run.name for run in runs],
            accuracies=[_accuracy(right) for right in rights],
            num_differing=sum(question["differs"] for question in questions),
            num_questions=len(questions),
            settings=settings,
            num_failures=num_failures,
            notes=notes,
            number=number,
            pages=files,
            prompts=part,
        )
    for old in output.glob("index-*.html"):
        if old.name not in files:
            old.unlink()


def _question(
    runs: Sequence[AnswerRun], key: RequestKey, output: Path, copy_images: bool
) -> dict[str, Any]:
    """Return a question and its answers, as the template shows them."""
    records = [run.records[key] for run in runs]
    first = records[0]
    label = first.metadata.get("label")
    answers = [
        {"text": record.answer, "right": is_right(record.answer, label)} for record in records
    ]
    return {
        "index": first.question_index,
        "text": first.question,
        "metadata": first.metadata,
        "label": label,
        "pictures": [
            image_address(
                runs[0].folder / picture,
                output,
                f"images/{key.entry_index}/{place}-{Path(picture).name}" if copy_images else None,
            )
            for place, picture in enumerate(first.pictures)
        ],
        "answers": answers,
        "differs": len({answer["text"] for answer in answers}) > 1,
    }


def _accuracy(right: Sequence[bool | None]) -> tuple[int, int]:
    """Return how many answers are right, and how many have a label."""
    labelled = [one for one in right if one is not None]
    return sum(labelled), len(labelled)
