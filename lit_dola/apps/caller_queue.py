"""A queue of callers who share one model, first come, first served."""

import time
from dataclasses import dataclass, field
from threading import Event, Lock

from lit_dola.errors import UserError

_TIMEOUT = 15.0
"""Seconds without a sign of life after which a caller loses the ticket."""


class Stopped(Exception):
    """The caller has given the ticket up."""


@dataclass(eq=False)
class Ticket:
    """A place in the queue."""

    caller: str = ""
    stopped: bool = False
    """Set if the caller has given it up."""
    ended: Event = field(default_factory=Event)
    """Set once the caller has left or timed out."""
    seen: float = field(default_factory=time.monotonic)
    """Last sign of life of the caller."""


class CallerQueue:
    """A queue of callers.

    Args:
        max_callers: Maximum number of callers, including the one that is served.
    """

    def __init__(self, max_callers: int) -> None:
        self.max_callers = max_callers
        self._tickets: list[Ticket] = []
        self._lock = Lock()

    def join(self, caller: str = "") -> Ticket:
        """Return a ticket at the end.

        Args:
            caller: Identifies who may give it up, see :meth:`stop`.
        """
        with self._lock:
            self._drop_timed_out()
            if len(self._tickets) >= self.max_callers:
                raise UserError(
                    f"queue full, {self.max_callers} drawings; try again in a moment",
                    setting="max_queue",
                )
            self._tickets.append(Ticket(caller))
            return self._tickets[-1]

    def before(self, ticket: Ticket) -> int:
        """Return the number of callers ahead, 0 if served; counts as a sign of life."""
        with self._lock:
            ticket.seen = time.monotonic()
            self._drop_timed_out()
            if ticket.stopped:
                raise Stopped
            if ticket.ended.is_set():
                raise UserError("connection timed out; draw again")
            return self._tickets.index(ticket)

    def stop(self, caller: str | None = None) -> None:
        """Give up all tickets of a caller; None: of all callers."""
        with self._lock:
            for ticket in [it for it in self._tickets if caller in (None, it.caller)]:
                ticket.stopped = True
                self._end(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Give a ticket up."""
        with self._lock:
            self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        ticket.ended.set()
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def _drop_timed_out(self) -> None:
        now = time.monotonic()
        for ticket in [*self._tickets]:
            if now - ticket.seen > _TIMEOUT:
                self._end(ticket)
