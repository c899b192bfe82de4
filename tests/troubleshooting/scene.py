"""Where messages are provoked: a folder with a prompt file, a tiny checkpoint, the command line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

CASES = {}


def case(fragment):
    """Register the function that provokes the message containing this fragment.

    It is called with a :class:`Scene` and returns the exit code and stderr, and the exit code that
    is right.
    """
    return lambda function: CASES.setdefault(fragment, function)


@dataclass
class Scene:
    folder: Path
    checkpoint: Path
    main_here: Callable
    monkeypatch: pytest.MonkeyPatch

    def predict(self, *args, subcommand="predict"):
        return self.main(
            subcommand, "--trainer.accelerator=cpu", "--trainer.devices=1",
            f"--model.model_path={self.checkpoint}", "--model.parallel_size=2", *args,
        )  # fmt: skip

    def main(self, *args):
        done = self.main_here(self.folder, *args)
        return done.returncode, done.stderr

    def evaluate(self, *args):
        """Run ``evaluate`` with two variants."""
        (self.folder / "evaluate.yaml").write_text(
            "variants: {baseline: {dola: false}, sharp: {alpha: 0.3}}\n"
            "scorer: {class_path: tests.test_evaluation.Redness}\n"
        )
        return self.predict("--config=evaluate.yaml", *args, subcommand="evaluate")

    def write_prompts(self, content):
        """Write the prompt file: its bytes, its text, or what it is the JSON of."""
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        raw = content if isinstance(content, bytes) else content.encode()
        (self.folder / "prompt.json").write_bytes(raw)

    @cached_property
    def copy(self):
        """A copy of the checkpoint, from now on the one that the commands use."""
        self.checkpoint = Path(shutil.copytree(self.checkpoint, self.folder / "spoilt"))
        return self.checkpoint

    def edit(self, file, change):
        """Change the content of a JSON file of the checkpoint."""
        content = json.loads((self.copy / file).read_text())
        change(content)
        (self.copy / file).write_text(json.dumps(content))

    def spoil(self, change):
        """Change the weights of the checkpoint."""
        weights = load_file(self.copy / "model.safetensors")
        change(weights)
        save_file(weights, self.copy / "model.safetensors")
