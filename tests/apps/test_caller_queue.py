"""Callers who share one model."""

import pytest

from lit_dola.apps import caller_queue
from lit_dola.apps.caller_queue import CallerQueue, Stopped
from lit_dola.errors import UserError


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(caller_queue.time, "monotonic", lambda: now[0])
    # dataclasses have taken the function itself
    monkeypatch.setattr(caller_queue, "Ticket", lambda caller: _place(caller, now[0]))
    return now


_Place = caller_queue.Ticket


def _place(caller, seen):
    return _Place(caller, seen=seen)


def test_first_come_first_served(clock):
    callers = CallerQueue(3)
    first, second, third = (callers.join() for _ in range(3))
    assert [*map(callers.before, (first, second, third))] == [0, 1, 2]
    with pytest.raises(UserError, match=r"^max_queue: queue full, 3 drawings; try again"):
        callers.join()
    callers.leave(second)
    assert [*map(callers.before, (first, third))] == [0, 1]
    callers.leave(first)
    assert callers.before(third) == 0
    assert first.ended.is_set()
    assert not third.ended.is_set()
    callers.leave(first)  # twice is once


def test_who_does_not_ask_again_is_forgotten(clock):
    callers = CallerQueue(2)
    lost, patient = callers.join(), callers.join()
    for clock[0] in (5.0, 10.0, 14.0):
        assert callers.before(patient) == 1
    clock[0] = 16.0
    assert callers.before(patient) == 0
    assert lost.ended.is_set()
    with pytest.raises(UserError, match="connection timed out"):
        callers.before(lost)
    assert callers.before(callers.join()) == 1


def test_a_caller_gives_up_all_of_his_places_and_no_other(clock):
    callers = CallerQueue(3)
    first, other, second = (callers.join(name) for name in ("me", "you", "me"))
    callers.stop("me")
    assert callers.before(other) == 0
    for place in (first, second):
        assert place.ended.is_set()
        with pytest.raises(Stopped):
            callers.before(place)
    assert not other.ended.is_set()
