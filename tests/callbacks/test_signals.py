"""The effect of a signal on each rank; test_faults.py has whole runs."""

import os
import signal

import pytest

from lit_dola.callbacks.signals import Interrupted, StopOnSignal


@pytest.mark.parametrize(
    ("is_child", "signum", "code"),
    [
        (False, signal.SIGINT, 130),
        (False, signal.SIGTERM, 143),
        (True, signal.SIGTERM, 143),
        (True, signal.SIGINT, 0),  # sent by the first rank, which is still writing
    ],
)
def test_exit_codes(is_child, signum, code):
    stop = StopOnSignal()
    stop._check()  # no signal yet
    stop._is_child, stop._signum = is_child, signum
    with pytest.raises(Interrupted) as caught:
        stop._check()
    assert caught.value.exit_code == code
    assert not caught.value.requeue


def test_a_rank_whose_starter_is_gone_ends():
    stop = StopOnSignal()
    stop._is_child, stop._parent = True, os.getppid()
    stop.on_predict_batch_start()
    stop._parent = -1
    with pytest.raises(Interrupted):
        stop.on_predict_batch_start()
    stop = StopOnSignal()  # a rank that a shell started may outlive it
    stop._parent = -1
    stop.on_predict_batch_start()
