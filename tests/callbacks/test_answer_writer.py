"""Answers on the disk: resume, mismatches, two kinds of runs in one folder, failures, ranks."""

import json
import os
import signal
from base64 import b64encode

import pytest
from PIL import Image

from lit_dola.runs.answers import AnswerRecord
from lit_dola.tasks.answer import LitAnswer
from tests.support.commands import messages
from tests.support.questions import QUESTIONS, answers, write_pictures, write_questions


@pytest.fixture
def answer(main_here, tmp_path, tiny_checkpoint):
    """Run ``answer`` in a folder with questions."""

    def run(*args, questions=QUESTIONS, task="answer", **more):
        write_questions(tmp_path, questions, **more)
        return main_here(
            tmp_path, task, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
            f"--model.model_path={tiny_checkpoint}", "--data.question_json=questions.jsonl",
            "--writer.output_dir=out", "--model.max_new_tokens=4", *args,
        )  # fmt: skip

    return run


@pytest.fixture
def asked(monkeypatch):
    """Indices of the questions that the model was asked."""
    indices = []
    step = LitAnswer.predict_step

    def noted(self, batch, batch_idx):
        indices.extend(request.key.entry_index for request in batch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LitAnswer, "predict_step", noted)
    return indices


@pytest.mark.slow
def test_a_second_run_answers_what_is_missing(answer, asked, tmp_path):
    # A step takes four batches, whose rows are refilled.
    assert answer("--trainer.limit_predict_batches=1", "--model.questions_per_batch=1").returncode
    first = answers(tmp_path / "out")
    assert [line["question_index"] for line in first] == [0, 1, 2, 3]
    assert asked == [0, 1, 2, 3]
    done = answer()
    assert done.returncode == 0, done.stderr
    assert asked == [*range(7)]
    lines = answers(tmp_path / "out")
    assert lines[:4] == first
    assert [line["question_index"] for line in lines] == [*range(7)]
    asked.clear()
    assert answer().returncode == 0
    assert asked == []
    assert answers(tmp_path / "out") == lines


@pytest.mark.slow
@pytest.mark.parametrize("task", ["answer", "rank"])
def test_pictures_in_the_file_are_saved_with_the_run(main_here, tiny_checkpoint, tmp_path, task):
    """Once each; a second run needs nothing, and another run in their place deletes them."""
    write_pictures(tmp_path)
    encoded = b64encode((tmp_path / "a.png").read_bytes()).decode()
    entries = [{"image": image, "question": "What?", "labels": ["a", "b"]}
               for image in (encoded, f"data:image/png;base64,{encoded}", "b.png")]  # fmt: skip
    (tmp_path / "inline.json").write_text(json.dumps(entries))
    (tmp_path / "other.json").write_text(json.dumps(entries[2:]))
    settings = {"answer": ["--model.max_new_tokens=4"], "rank": ["--model.scorer=likelihood"]}
    file = {"answer": "question_json", "rank": "item_json"}[task]

    def run(name, *args):
        done = main_here(
            tmp_path, task, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
            f"--model.model_path={tiny_checkpoint}", f"--data.{file}={name}",
            "--writer.output_dir=out", *settings[task], *args,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        log = {"answer": "answers", "rank": "ranks"}[task]
        lines = (tmp_path / f"out/{log}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], done.stderr

    lines, _ = run("inline.json")
    first, again, other = [line["pictures"] for line in lines]
    assert first == again == [line["image"] for line in lines[:1]]
    assert other == ["../b.png"]
    assert [path.name for path in tmp_path.glob("out/pictures/*")] == [first[0][9:]]
    assert (tmp_path / "out" / first[0]).read_bytes() == (tmp_path / "a.png").read_bytes()
    assert encoded not in json.dumps(lines)
    same, said = run("inline.json")
    assert same == lines
    assert "nothing to do" in said
    assert len(run("other.json", "--writer.on_mismatch=overwrite")[0]) == 1
    assert not (tmp_path / "out/pictures").exists()


@pytest.mark.slow
def test_a_signal_ends_the_run_and_the_same_command_continues(answer, asked, tmp_path, monkeypatch):
    answer("--writer.output_dir=whole", "--model.questions_per_batch=1")
    asked.clear()
    step = LitAnswer.predict_step

    def interrupted(self, batch, batch_idx):
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LitAnswer, "predict_step", interrupted)
        done = answer("--model.questions_per_batch=1")
    assert done.returncode == 143
    assert "stopped by SIGTERM; the same command continues from there" in done.stderr
    first = sorted(record.question_index for record in AnswerRecord.read(tmp_path / "out"))
    assert first == [0, 1, 2, 3][: len(first)]
    assert len(first) >= 2
    asked.clear()
    assert answer("--model.questions_per_batch=1").returncode == 0
    assert asked == [*range(len(first), 7)]
    assert answers(tmp_path / "out") == answers(tmp_path / "whole")


def test_a_torn_line_is_answered_again(answer, asked, tmp_path):
    answer()
    lines = answers(tmp_path / "out")
    path = tmp_path / "out/answers.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    asked.clear()
    assert answer().returncode == 0
    assert asked == [6]
    assert answers(tmp_path / "out") == lines


@pytest.mark.slow
def test_questions_that_were_added_are_answered(answer, asked, tmp_path):
    answer(questions=QUESTIONS[:4])
    asked.clear()
    assert answer().returncode == 0
    assert asked == [4, 5, 6]


@pytest.mark.slow
def test_what_else_an_entry_holds_is_updated(answer, asked, tmp_path):
    answer()
    asked.clear()
    assert answer(split="test").returncode == 0
    assert asked == []
    assert {line["split"] for line in answers(tmp_path / "out")} == {"test"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "questions", "told"),
    [
        (["--model.alpha=0.3"], QUESTIONS, "alpha was 0.1, is 0.3"),
        (["--model.cfg_weight=2"], QUESTIONS, "cfg_weight was 1.0, is 2.0"),
        (["--model.system_prompt=Hi"], QUESTIONS, "system_prompt was"),
        (["--model.preprocess=transformers"], QUESTIONS, 'preprocess was "deepseek", is "tr'),
        (["--model.prior=prior.json"], QUESTIONS, 'prior was null, is "prior.json sha256:'),
        ([], [("a.png", "Another?"), *QUESTIONS[1:]], "question 0 was 'a.png What is in the image"),
        ([], [("b.png", QUESTIONS[0][1]), *QUESTIONS[1:]], "is 'b.png What is in the image?'"),
    ],
)
def test_answers_of_another_run_are_not_mixed(answer, tmp_path, args, questions, told):
    (tmp_path / "prior.json").write_text('{" yes": 1}')
    answer()
    before = answers(tmp_path / "out")
    done = answer(*args, questions=questions)
    assert done.returncode == 1
    assert "out holds results of another run: " in done.stderr
    assert told in done.stderr
    assert answers(tmp_path / "out") == before
    assert answer(*args, "--writer.on_mismatch=new_folder", questions=questions).returncode == 0
    assert len(answers(tmp_path / "out-2")) == 7
    assert answer(*args, "--writer.on_mismatch=overwrite", questions=questions).returncode == 0
    assert answers(tmp_path / "out") == answers(tmp_path / "out-2")


@pytest.mark.slow
def test_a_prior_is_known_by_its_content(answer, tmp_path):
    (tmp_path / "one.json").write_text('{" yes": 1}')
    assert answer("--model.prior=one.json").returncode == 0
    (tmp_path / "one.json").write_text('{" yes":  1.0}')
    assert answer("--model.prior=one.json").returncode == 0
    (tmp_path / "one.json").write_text('{" yes": 2}')
    assert "prior was" in answer("--model.prior=one.json").stderr


@pytest.mark.slow
def test_images_and_answers_do_not_share_a_folder(answer, main_here, tmp_path, tiny_checkpoint):
    (tmp_path / "p.txt").write_text("a red apple")
    predict = (
        "predict", "--trainer.accelerator=cpu", f"--model.model_path={tiny_checkpoint}",
        "--data.prompt_json=p.txt", "--model.parallel_size=1", "--writer.output_dir=out",
    )  # fmt: skip
    assert main_here(tmp_path, *predict).returncode == 0
    done = answer()
    assert done.returncode == 1
    assert "out holds results of another run: it generated images, not answers" in done.stderr
    assert not (tmp_path / "out/answers.jsonl").exists()
    assert answer("--writer.on_mismatch=overwrite").returncode == 0
    assert not (tmp_path / "out/metadata.jsonl").exists()
    done = main_here(tmp_path, *predict)
    assert done.returncode == 1
    assert "it generated answers, not images" in done.stderr


@pytest.mark.slow
def test_a_broken_picture_stops_or_is_skipped(answer, tmp_path):
    answer(questions=QUESTIONS[:1])  # writes the pictures
    Image.effect_noise((300, 300), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    questions = [*QUESTIONS[:2], ("cut.png", "What?"), QUESTIONS[3]]
    done = answer(questions=questions)
    assert done.returncode == 1
    assert "questions.jsonl: entry 2: cut.png: a broken image: " in done.stderr
    done = answer("--data.on_error=skip", questions=questions)
    assert done.returncode == 3
    assert "1 skipped, see out/errors.jsonl" in done.stderr
    (failure,) = map(json.loads, (tmp_path / "out/errors.jsonl").read_text().splitlines())
    assert failure["prompt_index"] == 2
    assert failure["reason"].startswith("entry 2: cut.png: a broken image")
    assert [line["question_index"] for line in answers(tmp_path / "out")] == [0, 1, 3]


@pytest.mark.slow
def test_keys_of_the_entry_that_are_ours_are_kept(answer, tmp_path):
    assert answer(answer="a cat", tokens=3, settings=None).returncode == 0
    for line in answers(tmp_path / "out"):
        assert (line["given_answer"], line["given_tokens"]) == ("a cat", 3)
        assert line["given_settings"] is None
        assert isinstance(line["tokens"], list)
    assert answer(answer="a cat", tokens=3, settings=None).returncode == 0
    assert answers(tmp_path / "out")[0]["given_answer"] == "a cat"


@pytest.mark.parametrize(
    ("prior", "told"),
    [
        ('{" yes": "much"}', "' yes' has 'much'; expected a finite number"),
        ('{" yes": NaN}', "' yes' has nan; expected a finite number"),
        ('{" yes": true}', "' yes' has True; expected a finite number"),
        ('{"": 1}', "'' has no token; expected a text"),
        ('{"a b": 1, "a c": 2}', "start with the same token"),
        ("[1]", "expected a JSON object"),
        ("{", "not readable as JSON"),
        (None, "prior.json: not found; expected a JSON file"),
    ],
)
def test_priors_that_cannot_be(answer, tmp_path, prior, told):
    if prior is not None:
        (tmp_path / "prior.json").write_text(prior)
    done = answer("--model.prior=prior.json")
    assert done.returncode == 1
    assert told in done.stderr
    assert messages(done.stderr).count("\n") == 1


def test_a_question_that_is_too_long_names_the_entry(answer):
    done = answer(questions=[*QUESTIONS[:1], ("a.png", "what " * 400)])
    assert done.returncode == 1
    assert "questions.jsonl: entry 1: question has " in done.stderr
    assert "model.max_new_tokens 4" in done.stderr


def replace_picture(path, times):
    """Put another picture under the same name, as new or as old as the one before."""
    before = path.stat()
    Image.new("RGB", (50, 40), "purple").save(path)
    if times == "old":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.parametrize("times", ["new", "old"])
def test_another_picture_of_the_same_name_is_another_run(
    answer, asked, tmp_path, times, monkeypatch
):
    assert answer().returncode == 0
    before = answers(tmp_path / "out")
    monkeypatch.setattr("tests.support.questions.write_pictures", lambda folder: None)
    (tmp_path / "a.png").touch()  # the same bytes
    asked.clear()
    assert answer().returncode == 0
    assert asked == []
    replace_picture(tmp_path / "a.png", times)
    done = answer()
    assert done.returncode == 1
    assert "question 0: a.png was another picture" in done.stderr
    assert answers(tmp_path / "out") == before
    assert answer("--writer.on_mismatch=overwrite").returncode == 0
    assert asked == [*range(7)]
    after = answers(tmp_path / "out")
    same = [one["digests"] == other["digests"] for one, other in zip(before, after)]
    assert same == ["a.png" not in names for names, _ in QUESTIONS]
    assert answer().returncode == 0
    assert asked == [*range(7)]
