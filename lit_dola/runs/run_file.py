"""``run.json``: size, settings, host and end of the latest run of a folder."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lit_dola.runs.files import write_atomically

NAME = "run.json"
"""Its name."""


@dataclass(frozen=True)
class RunFile:
    """The content of ``run.json``. Times are POSIX timestamps in seconds."""

    log: str
    """Name of the log of its results, such as ``metadata``."""
    token: str
    """Names the logs of its ranks."""
    asked_for: int
    """Requested results."""
    done_before: int
    """Those of them that existed when it started."""
    ranks: int
    settings: Mapping[str, Any]
    """Every setting that shapes a result."""
    batch_size: int | None = None
    """Results per batch; None until the model is loaded."""
    began: float | None = None
    """When the model was loaded; None until then."""
    ended: float | None = None
    """When everything was written; None while it runs, and if it was stopped."""
    num_there: int | None = None
    """Requested results that exist at the end."""
    num_missing: int | None = None
    """Requested results that neither exist nor were skipped, likewise."""
    step: str | None = None
    """Mode of decoding steps, e.g. ``compiled, CUDA graphs``; None until the model is loaded."""
    host: str = field(default_factory=socket.gethostname)
    """Host of its first rank."""
    process: int = field(default_factory=os.getpid)
    """Process id of its first rank."""

    def write(self, folder: Path) -> None:
        """Write it into the folder of the run."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        write_atomically(folder / NAME, [text.encode(), b"\n"])

    @classmethod
    def read(cls, folder: Path) -> "RunFile | None":
        """Read it; None if there is none, as in the folder of an older run, or it was damaged."""
        try:
            content = json.loads((folder / NAME).read_bytes())
            own = {it.name: content[it.name] for it in fields(cls) if it.name in content}
            counts = [own[name] for name in ("asked_for", "done_before", "ranks")]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        sound = all(type(count) is int for count in counts) and isinstance(own["settings"], dict)
        return cls(**own) if sound else None
