"""The one error that is meant for people rather than for programmers."""


class UserError(Exception):
    """Something that the user can mend; its one-line message says what was found and what to do.

    The command line prints the message alone, without a traceback, and exits with 1.
    """


class RankError(UserError):
    """One that a rank met by itself: of several ranks, each that has one says so."""
