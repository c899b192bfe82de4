"""Lines of JSON as dataclasses: a log's columns are the fields of its record, in their order."""

from dataclasses import MISSING, fields
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self, get_args, get_origin, get_type_hints

Line = dict[str, Any]
"""A line as it is written."""
REST = {"rest": True}
"""Metadata of the field that holds all keys that are not a column."""
SHARED = {"shared": True}
"""Metadata of a column that is also a key of the entry."""
_LARGEST = 2**63
"""Exclusive upper limit of integers in a line."""
_GIVEN = "given_"
"""Prefix of a key of the entry that is also the name of a column."""


class _Columns(NamedTuple):
    """The columns of a record."""

    types: dict[str, set[type]]
    own: set[str]
    """Columns that are not keys of the entry, too."""
    optional: set[str]
    """Columns that are left out if they are None."""
    rest: str | None
    """The field with the metadata :data:`REST`."""


class LogRecord:
    """Base of dataclasses that are lines of a log."""

    log: ClassVar[str]
    """Name of the log, without its suffix."""
    first_was: ClassVar[str | None] = None
    """Name of the first column in lines of earlier versions; None: the same."""
    key_columns: ClassVar[tuple[str, ...]]
    """Columns that identify the result: of its entry and, if there are several, of the sample."""

    @classmethod
    def _columns(cls) -> _Columns:
        return _columns_of(cls)  # type: ignore[arg-type]

    @classmethod
    def is_line(cls, line: Any) -> bool:
        """Return whether a line has the columns of this record, in their types."""
        if not isinstance(line, dict):
            return False
        for name, types in cls._columns().types.items():
            value = line.get(name)
            if type(value) not in types or (type(value) is int and abs(value) >= _LARGEST):
                return False
        return True

    @classmethod
    def up_to_date(cls, line: Any) -> Any:
        """Return a line whose first column has its present name; the line itself if it has."""
        if cls.first_was is None:
            return line
        return with_name(line, cls.first_was, next(iter(cls._columns().types)))

    @classmethod
    def from_line(cls, line: Line) -> Self:
        """Return the record of a line, see :meth:`is_line`."""
        types, own, _, rest = cls._columns()
        values = {name: line[name] for name in types if name in line}
        if rest is not None:
            values[rest] = others = {}
            for name, value in line.items():
                if name not in own:
                    given = name.removeprefix(_GIVEN)
                    others[given if given in own else name] = value
        return cls(**values)

    def to_line(self) -> Line:
        """Return the line of this record."""
        _, own, optional, rest = self._columns()
        line: Line = {}
        for it in fields(self):  # type: ignore[arg-type]
            value = getattr(self, it.name)
            if it.name == rest:
                line.update({f"{_GIVEN}{k}" if k in own else k: v for k, v in value.items()})
            elif value is not None or it.name not in optional:
                line[it.name] = value
        return line

    @classmethod
    def place_of(cls, line: Line) -> tuple[int, int]:
        """Return the sort key of a line: a line about a whole entry comes before its samples."""
        entry, *sample = (line[name] for name in cls.key_columns)
        return entry, 0 if not sample else -1 if sample[0] is None else sample[0]


def with_name(line: Any, was: str, name: str) -> Any:
    """Return a line whose first column has a new name; the line itself if it has it already."""
    if not isinstance(line, dict) or name in line or was not in line:
        return line
    return {name: line[was], **{key: line[key] for key in line if key != was}}


@cache
def _columns_of(kind: type[LogRecord]) -> _Columns:
    hints = get_type_hints(kind)
    types, own, optional, rest = {}, set(), set(), None
    for it in fields(kind):  # type: ignore[arg-type]
        if it.metadata == REST:
            rest = it.name
            continue
        hint = hints[it.name]
        parts = get_args(hint) if type(None) in get_args(hint) else (hint,)
        types[it.name] = {get_origin(part) or part for part in parts}
        if it.metadata != SHARED:
            own.add(it.name)
        if it.default is not MISSING:
            optional.add(it.name)
    return _Columns(types, own, optional, rest)
