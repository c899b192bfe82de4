"""Settings that were renamed: the old names still work, and old records are still understood."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

SETTINGS = {"head": "apc"}
"""Old to new names of the model's settings."""
VALUES = {"apc": {"seed": "per_branch"}}
"""Old to new values of the model's settings."""
EVALUATE = {"settings": "variants", "layout": "export"}
"""Old to new names of the arguments of ``evaluate``."""


def rename_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of the model, or those in an image's record, under their current names.

    Example:
        >>> rename_settings({"head": "seed", "alpha": 0.1})
        {'apc': 'per_branch', 'alpha': 0.1}
    """
    if _are_current(settings):
        return dict(settings)
    renamed = {}
    for name, value in settings.items():
        name = SETTINGS.get(name, name)
        renamed[name] = _value(name, value) if isinstance(value, str) else value
    return renamed


def _are_current(settings: Mapping[str, Any]) -> bool:
    """Return whether there is nothing to rename, as in nearly all of many records."""
    if not SETTINGS.keys().isdisjoint(settings):
        return False
    for name, old in VALUES.items():
        value = settings.get(name)
        if isinstance(value, str) and value in old:
            return False
    return True


def notes(settings: Mapping[str, Any], group: str = "") -> list[str]:
    """Return one note for each setting of the model with an old name or an old value.

    Args:
        settings: Settings by name.
        group: What to write before the names, as ``model.``.
    """
    found = []
    for name, value in settings.items():
        ((new_name, new_value),) = rename_settings({name: value}).items()
        found += _note(group + name, value, group + new_name, new_value)
    return found


def rename_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rename what a configuration file contains, also below the name of a subcommand.

    Returns:
        The configuration under current names, and a note for each old name.
    """
    renamed: dict[str, Any] = {}
    found = []
    for name, value in config.items():
        new = EVALUATE.get(name, name)
        if new != name:
            found.append(f"{name} is now called {new}")
        if isinstance(value, Mapping) and name == "model":
            found += notes(value, "model.")
            value = rename_settings(value)
        elif isinstance(value, Mapping) and name in ("predict", "evaluate"):
            value, more = rename_config(value)
            found += more
        renamed[new] = value
    return renamed, found


def rename_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Rename flags of the command line, as ``--model.head seed`` or ``--model.head=seed``.

    Returns:
        The arguments under current names, and a note for each old name.
    """
    renamed: list[str] = []
    found: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            renamed.append(argument)
            continue
        flag, equals, value = argument[2:].partition("=")
        separate = not equals and bool(rest) and not rest[0].startswith("-")
        if separate:
            value = rest.pop(0)
        name = _flag(flag)
        new = _value_of_flag(name, value)
        found += _note(flag, value, name, new)
        renamed += [f"--{name}", new] if separate else [f"--{name}{equals}{new}"]
    return renamed, found


def rename_environment(environment: MutableMapping[str, str], prefix: str) -> list[str]:
    """Rename variables of the environment in place, as ``LIT_DOLA_PREDICT__MODEL__HEAD``.

    Args:
        environment: The variables.
        prefix: What their names start with.

    Returns:
        A note for each old name.
    """
    found = []
    for variable in [name for name in environment if name.startswith(f"{prefix}_")]:
        subcommand, _, rest = variable.removeprefix(f"{prefix}_").partition("__")
        if not rest:
            continue
        old = rest.lower().replace("__", ".")
        name, value = _flag(old), environment[variable]
        new = _value_of_flag(name, value)
        target = f"{prefix}_{subcommand}__{name.upper().replace('.', '__')}"
        if (target, new) != (variable, value):
            found.append(f"{variable}={value} is now called {target}={new}")
            del environment[variable]
            environment[target] = new
    return found


def _flag(name: str) -> str:
    group, dot, setting = name.partition(".")
    if group == "model":
        return f"{group}{dot}{SETTINGS.get(setting, setting)}"
    return f"{EVALUATE.get(group, group)}{dot}{setting}"


def _value(name: str, value: str) -> str:
    return VALUES.get(name, {}).get(value, value)


def _value_of_flag(name: str, value: str) -> str:
    return _value(name.removeprefix("model."), value) if name.startswith("model.") else value


def _note(name: str, value: Any, new_name: str, new_value: Any) -> list[str]:
    """Return a note if the name or the value has changed."""
    if new_value != value:
        return [f"{name}: {value} is now called {new_name}: {new_value}"]
    return [f"{name} is now called {new_name}"] if new_name != name else []
