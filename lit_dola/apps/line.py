"""Callers who share one model, first come, first served."""

import time
from dataclasses import dataclass, field
from threading import Event, Lock

from lit_dola.errors import UserError

_LOST_AFTER = 15.0
"""Seconds after which a caller who has not asked again is taken to be gone."""


class Stopped(Exception):
    """The caller has given the place up."""


@dataclass(eq=False)
class Place:
    """A place in the line."""

    caller: str = ""
    stopped: bool = False
    """Whether the caller has given it up."""
    ended: Event = field(default_factory=Event)
    """Whether the caller has left, or is gone."""
    seen: float = field(default_factory=time.monotonic)
    """When the caller was last there."""


class Line:
    """A line of callers.

    Args:
        most: Callers at once, the one who is served among them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._places: list[Place] = []
        self._lock = Lock()

    def join(self, caller: str = "") -> Place:
        """Return a place at the end.

        Args:
            caller: Who may give it up, see :meth:`stop`.

        Raises:
            UserError: If the line is full.
        """
        with self._lock:
            self._forget_the_lost()
            if len(self._places) >= self.most:
                raise UserError(
                    f"max_queue: {self.most} drawings wait or run already; try again in a moment"
                )
            self._places.append(Place(caller))
            return self._places[-1]

    def before(self, place: Place) -> int:
        """Return how many are before a place, 0 if it is served, and note that it is not lost.

        Raises:
            UserError: If it was taken to be.
            Stopped: If its caller has given it up.
        """
        with self._lock:
            place.seen = time.monotonic()
            self._forget_the_lost()
            if place.stopped:
                raise Stopped
            if place.ended.is_set():
                raise UserError("the page did not answer for too long; draw again")
            return self._places.index(place)

    def stop(self, caller: str | None = None) -> None:
        """Give up all places of a caller; None: of all callers."""
        with self._lock:
            for place in [it for it in self._places if caller in (None, it.caller)]:
                place.stopped = True
                self._end(place)

    def leave(self, place: Place) -> None:
        """Give a place up."""
        with self._lock:
            self._end(place)

    def _end(self, place: Place) -> None:
        place.ended.set()
        if place in self._places:
            self._places.remove(place)

    def _forget_the_lost(self) -> None:
        now = time.monotonic()
        for place in [*self._places]:
            if now - place.seen > _LOST_AFTER:
                self._end(place)
