"""How the command line starts: what it imports, what its help says, and who has started it."""

import json
import subprocess
import sys

import pytest

from lit_dola.cli.command import _LAUNCHERS, _check_world_size
from lit_dola.errors import UserError
from lit_dola.registry import TASKS
from tests.support import forked
from tests.support.commands import ROOT, messages, succeed

IMPORTED = """
import json, sys
sys.argv = ["main.py", *sys.argv[1:]]
from lit_dola.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
else:
    code = 0
heavy = {"torch", "transformers", "lightning", "torchmetrics", "matplotlib"} & sys.modules.keys()
print(json.dumps([code or 0, sorted(heavy)]))
"""


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["predikt"], 2),
        (["status", "run"], 0),
        (["status", "run", "--json"], 0),
        (["status", "nothing"], 1),
        (["status", "--help"], 0),
        (["compare", "--help"], 0),
        (["export", "--help"], 0),
        (["export", "flat", "run", "--output=out"], 1),
        (["compare", "run", "nothing", "--output=page"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.slow
def test_what_needs_no_model_imports_no_torch(args, code, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metadata.jsonl").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *args],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [code, []]


PLAIN = ("compare", "export", "status", "configs")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TASKS if name not in PLAIN])
def test_help_begins_with_what_matters_and_ends_with_examples(name, tmp_path):
    text = succeed(forked.run(tmp_path, [name, "--help"])).stdout
    assert text.startswith("usage: ")
    assert text.split("\n\n")[1].replace("\n", " ") == TASKS[name].help
    groups = ["model", "data", "writer", "trainer"]
    if name == "lens":
        groups = ["model", "data", "trainer"]
    if name in ("play", "serve", "verify"):  # they read no prompts, and write no run
        groups = ["model", "trainer"]
        assert not {"--data", "--writer.output_dir", "--trainer.max_time"} & {*text.split()}
    places = [text.index(f"ARG:   --{group}") for group in groups]
    assert places == sorted(places)
    assert "--trainer.devices" in text
    assert ("max_epochs" in text) is (name == "lens")  # only training needs it
    examples = text.partition("examples:\n")[2].strip().splitlines()
    assert len(examples) >= 2
    assert all(line.strip().startswith(f"python main.py {name} --config ") for line in examples)


@pytest.mark.slow
def test_settings_that_help_leaves_out_are_accepted(main_here, tmp_path, tiny_checkpoint):
    (tmp_path / "prompt.json").write_text('["a cat"]')
    (tmp_path / "old.yaml").write_text("trainer: {max_epochs: 3, accumulate_grad_batches: 1}\n")
    done = main_here(
        tmp_path, "predict", "--config=old.yaml", "--trainer.accelerator=cpu",
        "--trainer.min_steps=1", f"--model.model_path={tiny_checkpoint}", "--print_config",
    )  # fmt: skip
    assert (done.returncode, messages(done.stderr)) == (0, "")
    assert "max_epochs" not in done.stdout


@pytest.mark.parametrize(("launcher", "variable"), _LAUNCHERS.items())
def test_processes_that_the_trainer_does_not_know_of(launcher, variable):
    with pytest.raises(UserError, match=f"{launcher} has started 4 processes"):
        _check_world_size(1, {variable: "4"})
    with pytest.raises(UserError, match="trainer uses 2"):
        _check_world_size(2, {variable: "4"})
    for count, world_size in (("4", 4), ("1", 1), ("", 1), ("many", 1)):
        _check_world_size(world_size, {variable: count})
    _check_world_size(1, {})
