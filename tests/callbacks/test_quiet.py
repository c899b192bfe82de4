"""What of Lightning's messages is shown, and how."""

import logging

import pytest

from lit_dola.callbacks.quiet import quiet_lightning

LAUNCHER = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-9, ["rank 3 was ended by SIGKILL, and the others with it; everything written so far is"
              " kept, and the same command continues from there"]),
        (-15, ["rank 3 was ended by SIGTERM, and the others with it; everything written so far is"
               " kept, and the same command continues from there"]),
        (1, []),  # it has said why
    ],
)  # fmt: skip
def test_a_rank_that_was_killed_is_named(code, said):
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    LAUNCHER.addHandler(handler)
    try:
        with quiet_lightning():
            LAUNCHER.info(  # as its observer of processes does
                f"[rank: 3] Child process with PID 7 terminated with code {code}. Forcefully"
                " terminating all other processes to avoid zombies"
            )
            LAUNCHER.info("anything else")
        LAUNCHER.debug("afterwards")
    finally:
        LAUNCHER.removeHandler(handler)
    assert records == said
    assert not LAUNCHER.filters
