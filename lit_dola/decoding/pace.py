"""The pace of a pool of rows: how many tokens per pass are the fastest here."""

from collections.abc import Sequence

_FORGET = 0.99
"""Weight of an earlier pass relative to the next one."""
_KEEP = 0.9
"""The same of guesses, per pass since."""
_BUDGET = 1 / 20
"""Share of the time that trying the whole window again may take."""
_TRIAL = 3
"""Passes of a trial: guesses only become good from pass to pass."""
_SPIKE = 3.0
"""A pass counts as at most this many times as long as expected: the machine may be busy."""


class Pace:
    """Chooses the width of the next pass from what earlier ones took and brought.

    The seconds of a pass are taken to be ``a + b * sequences * width``, and every guess to be as
    likely right as the next one, as long as those before it are. The whole window is tried again if
    the trial takes little of the time.

    Args:
        window: Tokens per pass and sequence at most.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        powers = [1 << k for k in range(window.bit_length())]
        self.widths = sorted({*powers, window})
        """The widths to choose from."""
        self._right, self._guesses = 1.0, 1.0
        """Guesses that were right, of those that all guesses before were."""
        self._told, self._passes = 0, 0
        """The pass that last told something about guesses, and the last one."""
        self._sums = [0.0] * 5
        """Weights, tokens, seconds, tokens squared, tokens times seconds of earlier passes."""
        self._slope = 0.0
        self._last = 0
        self._planned = [window, window, 1]
        self._since = 0.0
        """Seconds since the whole window was last used."""

    def width(self, sequences: int) -> int:
        """Return the tokens per sequence that the next pass should run."""
        if self._planned:
            return self._planned[0]
        best = max(self.widths, key=lambda width: self._rate(sequences, width))
        trial = _TRIAL * self._seconds(sequences * self.window)
        if best < self.window and self._since * _BUDGET > trial:
            self._planned = [self.window] * _TRIAL
            return self.window
        return best

    def note(self, width: int, sequences: int, seconds: float, came_true: Sequence[int]) -> None:
        """Note what a pass took and brought.

        Args:
            width: Tokens per sequence that it ran.
            sequences: Sequences that it ran.
            seconds: Seconds that it took.
            came_true: Tokens that came true, of each sequence that is not complete.
        """
        if self._planned:
            self._planned.pop(0)
        self._passes += 1
        tokens = sequences * width
        if self._passes > 3:
            seconds = min(seconds, _SPIKE * self._seconds(tokens))
        new = 1.0, tokens, seconds, tokens**2, tokens * seconds
        self._sums = [_FORGET * old + it for old, it in zip(self._sums, new)]
        self._note_guesses(min(width, self._last or width), came_true)
        self._last = width
        self._since = 0.0 if width == self.window else self._since + seconds

    def _note_guesses(self, width: int, came_true: Sequence[int]) -> None:
        """Note how many guesses came true, of those that the pass before has revised."""
        right = sum(min(it, width) - 1 for it in came_true)
        guesses = right + sum(it < width for it in came_true)
        if guesses:
            keep = _KEEP ** (self._passes - self._told)
            self._right = keep * self._right + right
            self._guesses = keep * self._guesses + guesses
            self._told = self._passes

    def _rate(self, sequences: int, width: int) -> float:
        """Return the tokens per second and sequence that a width should bring."""
        chance = self._right / self._guesses
        true = sum(chance**place for place in range(width))
        return true / max(self._seconds(sequences * width), 1e-9)

    def _seconds(self, tokens: int) -> float:
        """Return the seconds that a pass over so many tokens should take."""
        count, x, t, xx, xt = self._sums
        spread = count * xx - x * x
        if spread > 1e-3 * count * xx:  # else all passes had the same size: the slope is as before
            self._slope = max((count * xt - x * t) / spread, 0.0)
        base = (t - self._slope * x) / count
        if base < 0:
            return tokens * t / x
        return base + self._slope * tokens
