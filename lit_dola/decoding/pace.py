"""The pace of a pool of rows: how many tokens per pass are the fastest here."""

from collections.abc import Sequence

_FORGET = 0.99
"""What an earlier pass counts in comparison with the next one."""
_KEEP = 0.9
"""The same of the tokens that came true, per pass since."""
_LONG_AGO = 1000
_BUDGET = 1 / 20
"""Share of the time that trying the whole window again may take."""
_TRIAL = 3
"""Passes of a trial: guesses only become good from pass to pass."""
_SPIKE = 3.0
"""A pass counts as at most this many times as long as expected: the machine may be busy."""


class Pace:
    """Chooses the width of the next pass from what earlier ones took and brought.

    The seconds of a pass are taken to be ``a + b * sequences * width``, and the tokens that come
    true are averaged by width. A width is tried again if the trial takes little of the time.

    Args:
        window: Tokens per pass and sequence at most.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        powers = [1 << k for k in range(window.bit_length())]
        self.widths = sorted({*powers, window})
        """The widths to choose from."""
        self._true = dict.fromkeys(self.widths, 1.0)
        """Tokens that come true per pass and sequence."""
        self._passes = 0
        self._seen: dict[int, int] = {}
        """The pass that last told something about a width."""
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
        if len(self._seen) > 1:
            seconds = min(seconds, _SPIKE * self._seconds(tokens))
        new = 1.0, tokens, seconds, tokens**2, tokens * seconds
        self._sums = [_FORGET * old + it for old, it in zip(self._sums, new)]
        for narrower in self.widths:
            # Guesses beyond what the last pass ran were never revised.
            if came_true and narrower <= width and (narrower <= self._last or not self._last):
                mean = sum(min(it, narrower) for it in came_true) / len(came_true)
                old = self._passes - self._seen.get(narrower, -_LONG_AGO)
                keep = _KEEP**old
                self._true[narrower] = keep * self._true[narrower] + (1 - keep) * mean
                self._seen[narrower] = self._passes
        self._last = width
        self._since = 0.0 if width == self.window else self._since + seconds

    def _rate(self, sequences: int, width: int) -> float:
        """Return the tokens per second and sequence that a width should bring."""
        return self._true[width] / max(self._seconds(sequences * width), 1e-9)

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
