"""The tables of messages: complete, and every message is provoked as a user would."""

import ast
import re

import pytest

from tests.support.commands import ROOT
from tests.support.commands import messages as said_on
from tests.troubleshooting import (  # noqa: F401 (they fill CASES)
    of_apps,
    of_files,
    of_lenses,
    of_questions,
    of_ranks,
    of_runs,
    of_tools,
)
from tests.troubleshooting.scene import CASES, Scene

PAGE = ROOT / "docs/troubleshooting.md"
MESSAGES = re.findall(r"^\| (`.+?`) \|", PAGE.read_text(encoding="utf-8"), re.M)
SPEAKS = ("UserError", "RankError", "_log.warning", "_log.info", "fail")
HOLE = "\0"


def literal(node):
    """The text of a message, with a hole where it depends on the input."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    return HOLE


def messages():
    """Yield every place of the package that tells a user something, with the message's start."""
    for path in sorted((ROOT / "lit_dola").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in SPEAKS):
                continue
            message = re.sub("%[sd]", HOLE, literal(node.args[0]))
            start = message.split(";")[0]
            if says_something(message):
                yield f"{path.name}:{node.lineno}", start if says_something(start) else message


def pattern(message, hole):
    return ".*".join(map(re.escape, message.split(hole)))


def says_something(message):
    """Whether it has words of its own: others pass on the message of another error."""
    return len(re.findall("[a-zA-Z]{2,}", message.replace(HOLE, " "))) > 1


def test_every_message_has_a_row():
    places = [*messages()]
    assert len(places) > 80
    without = [
        (where, message.replace(HOLE, "…"))
        for where, message in places
        if not any(re.search(pattern(message, HOLE), row) for row in MESSAGES)
    ]
    assert without == []


def test_every_row_is_provoked():
    assert len(MESSAGES) == len(CASES)
    for message in MESSAGES:
        assert sum(fragment in message for fragment in CASES) == 1, message


@pytest.mark.slow
@pytest.mark.parametrize("fragment", CASES)
def test_message(fragment, tiny_checkpoint, main_here, monkeypatch, tmp_path):
    (message,) = (message for message in MESSAGES if fragment in message)
    scene = Scene(tmp_path, tiny_checkpoint, main_here, monkeypatch)
    scene.write_prompts(["a cat"])
    found, code = CASES[fragment](scene)
    assert found[0] == code, found[1]
    said = said_on(found[1])
    assert said.count("\n") == 1, found[1]
    assert re.search(pattern(message[1:-1], "…"), said), found[1]
