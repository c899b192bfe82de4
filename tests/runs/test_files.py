"""Errors of the file system name what the user knows."""

import errno
import os
import re
from pathlib import Path

import pytest

from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.runs.files import write_atomically


@pytest.mark.parametrize("call", ["replace", "open"])
def test_an_error_names_the_file_and_not_its_temporary_one(call, tmp_path, monkeypatch):
    def fail(path, *args):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, call, fail)
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))) as caught:
        write_atomically(tmp_path / "a.jpg", [b"x"])
    assert caught.value.filename == str(tmp_path / "a.jpg")


def test_weights_that_cannot_be_read_are_named(tiny_checkpoint, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("lit_dola.janus.checkpoint._digest_sample", fail)
    with pytest.raises(UserError, match=f"^{re.escape(str(tiny_checkpoint))}: not readable: "):
        _ = Checkpoint.open(str(tiny_checkpoint)).fingerprint
