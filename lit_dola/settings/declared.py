"""Settings declared once, in the signatures and docstrings of the classes that take them.

A class names its own settings in ``__init__`` and passes the rest on to its parent. Everything else
is derived from these declarations: flags, YAML, help, schema, reference, the signatures of
Python's methods, records, the server's fields and the playground's controls.
"""

import re
import textwrap
from collections.abc import Callable, Container, Mapping
from functools import cache, wraps
from inspect import Parameter, signature
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, get_args, get_type_hints

from docstring_parser import parse
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lit_dola.errors import UserError
from lit_dola.messages import one_line, suggestion
from lit_dola.settings.expected import expected
from lit_dola.settings.texts import take_literally

F = TypeVar("F", bound=Callable[..., Any])
_PLACE = "settings:"
"""Line of a docstring that the descriptions of settings replace."""


class Setting(NamedTuple):
    """One setting of a class."""

    name: str
    type: Any
    default: Any
    description: str

    @property
    def summary(self) -> str:
        """First clause of the description."""
        return re.split(r"[:;.] ", self.description)[0].rstrip(".").replace("``", "")


class Declared:
    """Base of classes whose settings are declared along their inheritance.

    ``__init__`` of each class has its own settings and ``**settings`` for those of its parents; its
    signature becomes that of all, parents first. A setting that is declared again keeps its place,
    and those declared behind it follow it.
    """

    listed_last: ClassVar[tuple[str, ...]] = ()
    """Settings at the end of lists."""
    texts: ClassVar[tuple[str, ...]] = ()
    """Settings that are texts, see :class:`lit_dola.settings.texts.TextAction`."""
    recommendable: ClassVar[tuple[str, ...]] = ()
    """Settings that a checkpoint may recommend."""
    given: dict[str, Any]
    """Every setting, as it was given or by default, in the order of the signature."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = _with_all_settings(cls)  # type: ignore[method-assign]

    @classmethod
    def checked(cls, settings: Mapping[str, Any]) -> Self:
        """Create an instance from settings by name, each checked as on the command line.

        Raises:
            UserError: If a setting is unknown or out of range.
        """
        known = settings_of(cls)  # type: ignore[arg-type]
        for name in settings.keys() - known.keys():
            raise UserError(f"{name}: not a setting of the model{suggestion(name, known)}")
        refuse_null(cls, settings)
        return cls(**parse_settings(cls, settings).as_dict())


def _with_all_settings(cls: type) -> Any:
    """Return ``__init__`` of a class with the signature of all its settings, which it records."""
    init = cls.__dict__["__init__"]
    merged = _merged(cls, init)

    @wraps(init)
    def __init__(self: Any, *args: Any, **settings: Any) -> None:
        if "given" not in self.__dict__:
            bound = merged.bind(self, *args, **settings)
            bound.apply_defaults()
            found = {name: value for name, value in bound.arguments.items() if name != "self"}
            object.__setattr__(self, "given", found)
            args, settings = (), found
        init(self, *args, **settings)

    __init__.__signature__ = merged  # type: ignore[attr-defined]
    return __init__


def _merged(cls: type, init: Callable[..., None]) -> Any:
    found: list[Parameter] = []
    for owner in reversed(cls.__mro__):
        if not issubclass(owner, Declared) or "__init__" not in owner.__dict__:
            continue
        own = init if owner is cls else owner.__dict__["__init__"].__wrapped__
        behind = len(found)
        for parameter in signature(own).parameters.values():
            names = [it.name for it in found]
            if parameter.kind is Parameter.VAR_KEYWORD or (found and parameter.name == "self"):
                continue
            if parameter.name in names:
                behind = names.index(parameter.name) + 1
                found[behind - 1] = parameter
            else:
                found.insert(behind, parameter)
                behind += 1
    last: tuple[str, ...] = cls.listed_last  # type: ignore[attr-defined]
    found.sort(key=lambda it: last.index(it.name) if it.name in last else -1)
    this, first, *others = found
    keyword = [it.replace(kind=Parameter.KEYWORD_ONLY) for it in others]
    return signature(init).replace(
        parameters=[this, first.replace(kind=Parameter.POSITIONAL_OR_KEYWORD), *keyword]
    )


@cache
def settings_of(owner: Callable[..., Any]) -> dict[str, Setting]:
    """Return the settings of a class or a function, by name, in the order of its signature.

    Descriptions come from its docstring, or else from that of the parent that declares them.
    """
    described: dict[str, str] = {}
    for each in reversed(getattr(owner, "__mro__", (owner,))):
        for param in parse(each.__doc__ or "").params:
            described[param.arg_name] = one_line(param.description or "")
    return {
        name: Setting(name, it.annotation, it.default, described.get(name, ""))
        for name, it in signature(owner).parameters.items()
    }


def parse_settings(owner: type, settings: Mapping[str, Any]) -> Namespace:
    """Return settings of a class as the command line would parse them, with defaults for the rest.

    Raises:
        UserError: If one is out of range.
    """
    parser = _parser_of(owner)
    try:
        found: Namespace = parser.parse_object(dict(settings))
        return found
    except ArgumentError as error:
        for name, value in settings.items():  # find out which one
            try:
                parser.parse_object({name: value})
            except ArgumentError:
                kind = settings_of(owner)[name].type
                raise UserError(f"{value!r:.80}", expected(name, kind), setting=name) from error
        raise UserError(one_line(str(error))) from error


class SettingsParser(ArgumentParser):
    """Parser that refuses an integer too large for a float like any other wrong value."""

    def _check_value_key(self, action: Any, value: Any, key: str, *args: Any, **how: Any) -> Any:
        try:
            return super()._check_value_key(action, value, key, *args, **how)
        except OverflowError as error:
            raise TypeError(f'Parser key "{key}": {error}') from error


@cache
def _parser_of(owner: type) -> ArgumentParser:
    parser = SettingsParser(exit_on_error=False)
    parser.add_class_arguments(owner)
    take_literally(parser, owner)
    return parser


def refuse_null(owner: type, settings: Mapping[str, Any], group: str = "") -> None:
    """Check that no setting is None that must not be, e.g. a key of YAML without a value.

    Args:
        owner: Class whose arguments the settings are.
        settings: Settings by name.
        group: Prefix of the names in messages, e.g. ``model.``.

    Raises:
        UserError: If one is.
    """
    hints = get_type_hints(owner.__init__)  # type: ignore[misc]
    parameters = signature(owner).parameters
    for name, value in settings.items():
        hint = parameters[name].annotation if name in parameters else hints.get(name)
        if value is None and name in parameters and type(None) not in get_args(hint):
            default = parameters[name].default
            raise UserError(
                "null", f"a value, e.g. the default {default!r}", setting=f"{group}{name}"
            )


def takes_settings_of(owner: type, leave_out: Container[str]) -> Callable[[F], F]:
    """Give a function with ``**settings`` the signature and the documentation of all of them.

    ``help()``, ``inspect.signature`` and the completion of notebooks then show each setting with
    its type, default and description.

    Args:
        owner: The class whose settings it takes.
        leave_out: Those that it does not.
    """

    def decorate(function: F) -> F:
        own = signature(function)
        kept = [it for it in own.parameters.values() if it.kind is not Parameter.VAR_KEYWORD]
        names = {it.name for it in kept}
        settings = [
            it
            for it in settings_of(owner).values()
            if it.name not in names and it.name not in leave_out
        ]
        keyword = Parameter.KEYWORD_ONLY
        added = [
            Parameter(it.name, keyword, default=it.default, annotation=it.type) for it in settings
        ]
        function.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        function.__doc__ = _documented(function.__doc__ or "", settings)
        return function

    return decorate


def _documented(text: str, settings: list[Setting]) -> str:
    """Replace a docstring's line about ``settings`` with their descriptions."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.strip().startswith(_PLACE):
            lines.append(line)
            continue
        first = line[: len(line) - len(line.lstrip())]
        for it in settings:
            described = f"{it.name}: {it.description}"
            lines += textwrap.wrap(
                described, 100, initial_indent=first, subsequent_indent=f"{first}    "
            )
    return "\n".join(lines)
