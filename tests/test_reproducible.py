"""The commands of the page that show that images are reproducible, run as they stand there."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.support.commands import MAIN, ROOT, records, succeed

PAGE = (ROOT / "docs/how-to.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## Show that images are reproducible\n")[1].split("\n## ")[0]
COMMANDS = [shlex.split(line) for line in re.findall(r"^    (\S.*)$", SECTION, re.M)]


@pytest.mark.distributed
def test_another_order_another_split_other_devices(tmp_path):
    *predict, diff = COMMANDS
    assert [command[:3] for command in predict] == [["python", "main.py", "predict"]] * 3
    for _, _, *args in predict:
        succeed(
            subprocess.run(
                [sys.executable, str(MAIN), *args],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=300,
            )
        )
    assert len(records(tmp_path / "outputs/otherwise")) == 32
    done = subprocess.run(diff, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    image = next((tmp_path / "outputs/otherwise").glob("*/img_02.png"))
    image.write_bytes(image.read_bytes() + b"x")
    assert subprocess.run(diff, cwd=tmp_path, capture_output=True).returncode == 1
