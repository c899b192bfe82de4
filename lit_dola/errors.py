"""Errors that a user can fix, with their parts: where, what was found, what was expected."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Self, TypeVar

Place = str | PathLike[str]
_LONGEST = 1000
"""Characters of a text that a message quotes."""


class UserError(Exception):
    """An error that the user can fix, in one line.

    The command line prints the line without a traceback and exits with 1. Python, the server and
    the playground render the same parts under the names that their users know.

    Args:
        found: What was found.
        expected: What was expected, if that is not obvious.
        setting: The setting at fault, as the command line names it: ``model.alpha``.
        at: The file or entry at fault.
        mentions: Other settings that the text names, likewise.

    Example:
        >>> error = UserError("2", "0 to 1", setting="model.alpha").within("sweep.yaml")
        >>> str(error), error.in_python(), error.name
        ('sweep.yaml: model.alpha: 2; expected 0 to 1', 'sweep.yaml: alpha: 2; expected 0 to 1', \
'alpha')
    """

    def __init__(
        self,
        found: str,
        expected: str = "",
        *,
        setting: str = "",
        at: Place = "",
        mentions: tuple[str, ...] = (),
    ) -> None:
        found = _cut(found)
        super().__init__(found)
        self.found = found
        self.expected = expected
        self.setting = setting
        self.places: tuple[str, ...] = (_cut(at),) if str(at) else ()
        self.mentions = mentions

    def __str__(self) -> str:
        return ": ".join([*self.places, *filter(None, [self.setting]), self.detail])

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.__dict__)  # ranks and workers send errors to each other

    @property
    def name(self) -> str:
        """The setting at fault without its group: ``alpha``."""
        return self.setting.rpartition(".")[2]

    @property
    def detail(self) -> str:
        """The message without the place: what was found and expected."""
        return f"{self.found}; expected {self.expected}" if self.expected else self.found

    def within(self, *places: Place) -> Self:
        """Return the same error in the context of a file or an entry."""
        return self._with(places=(*map(_cut, places), *self.places))

    def at_setting(self, setting: str) -> Self:
        """Return the same error as the error of a setting."""
        return self._with(setting=setting)

    def in_python(self) -> Self:
        """Return the same error with settings named as in Python: ``alpha`` for ``model.alpha``."""
        found, expected = self.found, self.expected
        for full in self.mentions:
            short = full.rpartition(".")[2]
            found, expected = (
                text.replace(f"--{full}", short).replace(full, short) for text in (found, expected)
            )
        return self._with(found=found, expected=expected, setting=self.name, mentions=())

    def _with(self, **parts: object) -> Self:
        error = _restore(type(self), {**self.__dict__, **parts})
        error.__cause__ = self.__cause__
        return error


def _cut(text: Place) -> str:
    """Return a text of a user that is not longer than a message should be."""
    found = str(text)
    return found if len(found) <= _LONGEST else f"{found[:_LONGEST]}…"


E = TypeVar("E", bound=UserError)


class RankError(UserError):
    """An error local to one rank; every rank that hits one reports it."""


def _restore(kind: type[E], parts: dict[str, object]) -> E:
    error = kind("")
    error.__dict__.update(parts)
    error.args = (error.found,)
    return error


@contextmanager
def within(*places: Place) -> Iterator[None]:
    """Put errors raised inside into the context of a file or an entry."""
    try:
        yield
    except UserError as error:
        raise error.within(*places) from error.__cause__


@contextmanager
def about_setting(setting: str) -> Iterator[None]:
    """Turn errors raised inside into errors of a setting."""
    try:
        yield
    except UserError as error:
        raise error.at_setting(setting) from error


@contextmanager
def writing_to(folder: Place, setting: str) -> Iterator[None]:
    """Turn an error of the file system into a line that names the setting of a folder."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"cannot write to {where}: {error.strerror}", setting=setting) from error
