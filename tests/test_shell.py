"""Help from the shell: the console script, completion, the schema, and suggestions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from docs.make_schema import config_schema
from lit_dola.cli import main
from tests.support.commands import ROOT

SCRIPT = Path(sys.executable).with_name("lit-dola")
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMA = json.loads((ROOT / "configs/schema.json").read_text())
SCHEMAS = {
    "predict": SCHEMA,
    "evaluate": SCHEMA,
    "answer": json.loads((ROOT / "configs/schema-answer.json").read_text()),
    "rank": json.loads((ROOT / "configs/schema-rank.json").read_text()),
    "lens": json.loads((ROOT / "configs/schema-lens.json").read_text()),
    "evaluate-answer": json.loads((ROOT / "configs/schema-evaluate-answer.json").read_text()),
}


def lit_dola(*args):
    done = subprocess.run([SCRIPT, *args], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_console_script_does_what_main_does():
    """It also finds classes in the working folder, such as the scorer of this configuration."""
    printed = yaml.safe_load(
        lit_dola("evaluate", "--config=configs/evaluate.yaml", "--print_config")
    )
    assert printed["scorer"]["class_path"] == "recipes.shapes.scorer.ShapesScorer"


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.slow
def test_completion_in_bash(tmp_path, monkeypatch, capsys):
    script = tmp_path / "completion"
    monkeypatch.setattr(sys, "argv", ["lit-dola"])
    with pytest.raises(SystemExit):
        main(["--print_completion", "shtab-bash"])
    script.write_text(capsys.readouterr().out)

    def complete(*words):
        line = " ".join(words)
        code = f"""
            source {script}
            COMP_WORDS=({line}); [ -z "{words[-1]}" ] && COMP_WORDS+=("")
            COMP_CWORD={len(words) - 1}; COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}
            $(complete -p lit-dola | sed 's/.*-F \\([^ ]*\\).*/\\1/') 2>/dev/null
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert complete("lit-dola", "com") == {"compare"}
    assert complete("lit-dola", "predict", "--model.layer") == {
        "--model.layer",
        "--model.layer_ratio",
    }
    assert "--writer.on_mismatch" in complete("lit-dola", "evaluate", "--writer.")


def test_the_schema_is_the_one_of_these_settings():
    """Otherwise run: python -m docs.make_schema > configs/schema.json."""
    for task in ("evaluate", "answer", "rank", "evaluate-answer"):
        Draft202012Validator.check_schema(SCHEMAS[task])
        assert config_schema(task) == SCHEMAS[task]


def task_of(text):
    """The task that a configuration is for."""
    if "task: answer" in text:
        return "evaluate-answer"
    for key, task in {"question_json:": "answer", "item_json:": "rank", "runs:": "lens"}.items():
        if key in text:
            return task
    return "evaluate" if "variants:" in text else "predict"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_fit_the_schema_and_name_it(path):
    text = path.read_text()
    task = task_of(text)
    file = "schema.json" if task in ("predict", "evaluate") else f"schema-{task}.json"
    assert text.startswith(f"# yaml-language-server: $schema={file}\n")
    Draft202012Validator(SCHEMAS[task]).validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": {"alhpa": 0.1}}, {"model": {"alpha": 2}}, {"modle": {}},
        {"writer": {"format": "gif"}}, {"data": {"model_path": "x"}}, {"trainer": {"device": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_the_schema_finds_mistakes(wrong):
    assert not Draft202012Validator(SCHEMA).is_valid(wrong)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_setting_in_a_config_is_told_of(path):
    """Every configuration shows the command that runs it."""
    text = path.read_text()
    comments = [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]
    command = task_of(text).removesuffix("-answer")
    assert f"python main.py {command} --config configs/{path.name}" in comments


@pytest.mark.parametrize(
    ("args", "suggestion"),
    [
        (["predict", "--model.alhpa=0.2"], "model.alpha"),
        (["predict", "--alpha", "0.2"], "model.alpha"),
        (["predict", "--data.promt_json", "x"], "data.prompt_json"),
        (["predict", "--trainer.devises", "2"], "trainer.devices"),
        (["evaluate", "--refrence", "x"], "reference"),
        (["compare", "a", "b", "--outptu", "x"], "output"),
        (["predct"], "predict"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(main_here, tmp_path, args, suggestion):
    done = main_here(tmp_path, *args)
    assert done.returncode == 2
    assert done.stderr.endswith(f"; did you mean {suggestion}?\n")
    assert len(done.stderr.splitlines()) == 1


def test_a_misspelt_key_in_a_config_gets_a_suggestion(main_here, tmp_path):
    (tmp_path / "mine.yaml").write_text("model:\n  temprature: 0.5\n")
    done = main_here(tmp_path, "predict", "--config", "mine.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("'temprature'; did you mean model.temperature?\n")


def test_what_is_like_nothing_gets_none(main_here, tmp_path):
    done = main_here(tmp_path, "predict", "--zzz=1")
    assert "did you mean" not in done.stderr
