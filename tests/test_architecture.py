"""Changes that docs/architecture.md says are small: made on a copy of the package, and used."""

import json
import os
import re
import shutil
import subprocess
import sys
from typing import ClassVar

import pytest

from tests.support.commands import CPU, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def changed(tmp_path):
    """Change files of a copy of the package; returns what runs a script on it."""

    def change(edits, most):
        assert len(edits) <= most
        shutil.copytree(
            ROOT / "lit_dola", tmp_path / "lit_dola", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in ("configs", "checkpoints", "recipes", "docs"):
            (tmp_path / name).symlink_to(ROOT / name)
        for file, replacements in edits.items():
            path = tmp_path / "lit_dola" / file
            if isinstance(replacements, str):
                path.write_text(replacements)
                continue
            text = path.read_text()
            for old, new in replacements:
                assert text.count(old) == 1, (file, old)
                text = text.replace(old, new)
            path.write_text(text)

        return Changed(tmp_path)

    yield change
    for process in Changed.started:
        process.kill()


LOOP = """
import contextlib, io, json, sys, traceback
from lit_dola.cli import main
for line in sys.stdin:
    args, out, err, code = json.loads(line), io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(args, {}) if isinstance(args, str) else main(args)
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            code = traceback.format_exc()
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


class Changed:
    """A process with a copy of the package."""

    started: ClassVar = []

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP], cwd=folder, text=True,
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(self.process)

    def __call__(self, *args, expected=0):
        """Run the command line, or the text of a script; returns what it prints."""
        one = args[0] if len(args) == 1 and "\n" in args[0] else [*map(str, args)]
        self.process.stdin.write(json.dumps(one) + "\n")
        self.process.stdin.flush()
        code, stdout, stderr = json.loads(self.process.stdout.readline())
        assert code == expected, (code, stderr)
        return stdout + stderr if expected else stdout


def predict(checkpoint, *more):
    return [
        "predict", *CPU, f"--model.model_path={checkpoint}", "--data.prompts=a red apple",
        "--model.parallel_size=2", "--writer.output_dir=out", *more,
    ]  # fmt: skip


def lines(folder, log="metadata"):
    return [json.loads(line) for line in (folder / "out" / f"{log}.jsonl").open()]


def insert(new, before):
    return before, new + before


SAMPLER = {
    "decoding/sampling.py": [
        insert("    lowest_id: int | None\n", before="\n    def draw"),
        insert(
            "        if self.lowest_id is not None:\n"
            '            logits[..., : self.lowest_id] = float("-inf")\n',
            before="        return logits\n\n\ndef log_probs_of",
        ),
    ],
    "tasks/decode.py": [
        insert("        lowest_id: Made up.\n", before="        seed: A result depends"),
        insert(
            "        lowest_id: PositiveInt | None = None,\n",
            before='        seed: Seed = 0,\n        compile: bool | Literal["auto"] = "auto",',
        ),
    ],
}
EVERYWHERE = """
import inspect
from docs.make_reference import main as reference
from docs.make_schema import config_schema
from lit_dola import JanusPipeline
from lit_dola.apps.limits import Limits
from lit_dola.apps.openai import CALLERS_SETTINGS, request_model
for method in (JanusPipeline.generate, JanusPipeline.generate_each, JanusPipeline.answer):
    assert "lowest_id: Made up." in method.__doc__
    assert inspect.signature(method).parameters["lowest_id"].default is None
for task in ("evaluate", "answer", "evaluate-answer"):
    model = config_schema(task)["properties"]["model"]["properties"]
    assert model["lowest_id"]["description"].startswith("Made up."), model["lowest_id"]
assert reference().count("| `model.lowest_id` | `null` | Made up. |") == 2
assert "lowest_id" in CALLERS_SETTINGS
assert "lowest_id" in request_model(Limits(1, 10, 1), "8x8").model_fields
pipeline = JanusPipeline.from_pretrained(CHECKPOINT)
made = pipeline.generate("a red apple", parallel_size=1, progress=False, lowest_id=7)
assert made.records[0].settings["lowest_id"] == 7
assert made.tokens.min() >= 7
try:
    pipeline.generate("a", lowest_id=0)
except Exception as error:
    assert str(error) == "lowest_id: 0; expected an integer, 0 < lowest_id, or None", error
else:
    raise AssertionError
"""


def test_a_sampler_setting_is_declared_in_two_files(changed, tmp_path, tiny_checkpoint):
    """One of ``tasks/`` and one of ``decoding/``."""
    run = changed(SAMPLER, most=2)
    run(f"CHECKPOINT = {str(tiny_checkpoint)!r}\n{EVERYWHERE}")
    run(*predict(tiny_checkpoint, "--model.lowest_id=9", "--writer.save_tokens=true"))
    assert [line["lowest_id"] for line in lines(tmp_path)] == [9, 9]
    assert "Made up." in run("predict", "--help")
    assert "lowest_id: 3" in run("predict", "--model.lowest_id=3", "--print_config")


FIELD = {
    "runs/records.py": [
        insert("    largest: int | None = None\n", before="    forwards: int | None = None\n"),
        insert(
            "            largest=image.largest,\n", before="            forwards=image.forwards"
        ),
    ],
    "tasks/generate.py": [
        insert(
            "    @property\n    def largest(self):\n        return int(self.tokens.max())\n\n",
            before="    forwards: int | None = None\n",
        ),
    ],
}


def test_a_field_of_a_record(changed, tmp_path, tiny_checkpoint):
    run = changed(FIELD, most=3)
    run(*predict(tiny_checkpoint))
    first = lines(tmp_path)
    assert all(type(line["largest"]) is int for line in first)
    run(*predict(tiny_checkpoint, "--model.parallel_size=3"))
    assert lines(tmp_path)[:2] == first  # it is read back when the run is continued
    assert len(lines(tmp_path)) == 3


OUTPUT = {
    "callbacks/writer.py": [
        insert("        save_prompt: bool = False,\n", before="        grid: bool = False,\n"),
        insert("        save_prompt: Made up.\n", before="        grid: Also save"),
        insert("        self.save_prompt = save_prompt\n", before="        self.grid = grid\n"),
        insert(
            "        if self.save_prompt:\n"
            '            files.append(Path(record.file_name).with_suffix(".txt").as_posix())\n',
            before="        if record.key in self._inspected:\n",
        ),
        insert(
            "        if self.save_prompt:\n            path = self.output_dir / record.file_name\n"
            '            path.with_suffix(".txt").write_text(record.prompt + "\\n")\n',
            before="        self.run.append(record)",
        ),
    ],
    "runs/folder.py": [insert("txt|", before="npy|npz|inspect")],
    "runs/image_file.py": [insert('".txt": b"\\n", ', before='".npz": b"PK')],
}


def test_an_output_beside_each_image(changed, tmp_path, tiny_checkpoint):
    run = changed(OUTPUT, most=3)
    command = predict(tiny_checkpoint, "--writer.save_prompt=true")
    run(*command)
    texts = sorted((tmp_path / "out").glob("*/*.txt"))
    assert [text.read_text() for text in texts] == ["a red apple\n"] * 2
    texts[0].unlink()
    texts[1].write_text("cut off")
    run(*command)  # both images are incomplete
    assert [text.read_text() for text in texts] == ["a red apple\n"] * 2
    run(*predict(tiny_checkpoint, "--model.seed=5", "--writer.on_mismatch=overwrite"))
    assert not any(text.exists() for text in texts)


TASK = {
    "registry.py": [
        (
            '    "evaluate": EvaluationTask(',
            '    "caption": RunTask(\n'
            '        help="Describe pictures.",\n'
            '        module="lit_dola.tasks.caption:LitCaption",\n'
            '        data="lit_dola.data.captions:PictureDataModule",\n'
            '        writer="lit_dola.callbacks.caption_writer:CaptionWriter",\n'
            '        record="lit_dola.runs.captions:CaptionRecord",\n'
            "    ),\n"
            '    "evaluate": EvaluationTask(',
        )
    ],
    "tasks/caption.py": '''
from lit_dola.tasks.answer import LitAnswer
class LitCaption(LitAnswer):
    """Describes pictures.

    Args:
        max_new_tokens: Length of a caption.
        settings: Settings of LitAnswer.
    """
    def __init__(self, *, max_new_tokens: int = 4, **settings):
        super().__init__(max_new_tokens=max_new_tokens, **settings)
''',
    "data/captions.py": '''
from lit_dola.data.questions import QuestionDataModule
class PictureDataModule(QuestionDataModule):
    """Reads pictures.

    Args:
        question_json: Pictures.
    """
    def __init__(self, question_json: str = "pictures.json"):
        super().__init__(question_json)
''',
    "callbacks/caption_writer.py": '''
from lit_dola.callbacks.answer_writer import AnswerWriter
from lit_dola.runs.captions import CaptionRecord
class CaptionWriter(AnswerWriter):
    """Writes captions.

    Args:
        output_dir: Folder of the run.
    """
    kind = CaptionRecord
    def __init__(self, output_dir: str = "outputs"):
        super().__init__(output_dir, page=False)
    def write_batch(self, results):
        for answer in results.answers:
            record = CaptionRecord.of(*answer, self.record_settings(), self.run.relative)
            self.run.submit(self.run.append, record)
        return results.failures
''',
    "runs/captions.py": """
from dataclasses import dataclass
from lit_dola.runs.answers import AnswerRecord
@dataclass(frozen=True)
class CaptionRecord(AnswerRecord):
    log = "captions"
    results = "captions"
    entry_noun = "picture"
""",
}


def test_a_task_is_a_row(changed, tmp_path, tiny_checkpoint):
    run = changed(TASK, most=8)
    shutil.copy(ROOT / "recipes/shapes/demo/pictures/000.png", tmp_path / "a.png")
    entries = [{"image": "a.png", "question": "What is it?", "label": "x"}] * 2
    (tmp_path / "pictures.json").write_text(json.dumps(entries))
    assert re.search(r"caption +Describe pictures\.", run("--help"))
    settings = ["--trainer.accelerator=cpu", f"--model.model_path={tiny_checkpoint}"]
    run("caption", *settings, "--writer.output_dir=out")
    assert len(lines(tmp_path, "captions")) == 2
    status = json.loads(run("status", "out", "--json"))
    assert (status["results"], status["done"], status["state"]) == ("captions", 2, "finished")
    variants = "--variants={baseline: {dola: false}, dola: {}}"
    run("evaluate", "--task=caption", *settings, variants, "--writer.output_dir=measured")
    assert (tmp_path / "measured/dola/captions.jsonl").is_file()
    help = run("caption", "--help")
    assert "Length of a caption." in help
    assert "--writer.output_dir" in help
    # A folder of another task is refused, and the error knows what is in it.
    more = ["--data.question_json=pictures.json", "--writer.output_dir=out"]
    said = run("answer", *settings, *more, expected=1)
    assert "it generated captions, not answers" in said
