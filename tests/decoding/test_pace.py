"""The width of a pass follows what passes take and bring: simulated, without a clock."""

import random
from itertools import count

import pytest

from lit_dola.decoding.pace import Pace
from tests.support.images import slow

IMAGE = 576


class Machine:
    """A machine on which a pass takes ``1 + slope * tokens``, and guesses come true by chance."""

    def __init__(self, slope, chance, spikes=0.0):
        self.slope, self.chance, self.spikes = slope, chance, spikes
        self.random = random.Random(0)

    def seconds(self, tokens):
        busy = 20 if self.random.random() < self.spikes else 1
        return (1 + self.slope * tokens) * busy

    def came_true(self, width):
        return next((k for k in range(1, width) if self.random.random() >= self.chance), width)

    def run(self, sequences, width, note=lambda *_: None):
        """Return the seconds per image, as if rows were refilled for three of them each."""
        spent, known = 0.0, [1] * sequences
        while min(known) < 3 * IMAGE:
            now = width(sequences)
            took = self.seconds(sequences * now)
            true = [self.came_true(now) for _ in known]
            note(now, sequences, took, true)
            spent += took
            known = [before + more for before, more in zip(known, true)]
        return spent / (sum(known) / IMAGE)


@pytest.mark.parametrize("spikes", [0.0, *slow([0.02])])
@pytest.mark.parametrize("sequences", [8, *slow([1, 32])])
@pytest.mark.parametrize("chance", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("slope", [1e-4, 0.02, 1.0])
def test_as_fast_as_the_best_fixed_width(slope, chance, sequences, spikes):
    """Within 15 %, whatever guesses are worth here: a window that does not pay costs little."""
    pace = Pace(16)
    fixed = [
        Machine(slope, chance, spikes).run(sequences, lambda _, width=width: width)
        for width in pace.widths
    ]
    found = Machine(slope, chance, spikes).run(sequences, pace.width, pace.note)
    assert found <= 1.15 * min(fixed)


def test_a_window_that_begins_to_pay_is_found():
    """Its trials take a twentieth of the time at most."""
    pace, machine = Pace(16), Machine(slope=0.1, chance=0.0)
    machine.run(8, pace.width, pace.note)
    assert pace.width(8) == 1
    machine.chance = 0.95
    wide = 0
    for passes in count(1):
        width = pace.width(8)
        wide += width >= 4
        pace.note(width, 8, machine.seconds(8 * width), [machine.came_true(width)] * 8)
        if wide > 20:  # more than one trial
            break
        assert passes < 1000


def test_the_widths_of_a_window():
    assert Pace(1).widths == [1]
    assert Pace(16).widths == [1, 2, 4, 8, 16]
    assert Pace(12).widths == [1, 2, 4, 8, 12]
