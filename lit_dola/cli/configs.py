"""Configurations that come with the package, and the files that a configuration names.

A name in a configuration is looked up in the working directory, then in the configuration's own
folder, then among the files of the project that come with the package, such as the small Janus.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_dola.errors import UserError, writing_to
from lit_dola.messages import printable, suggestion
from lit_dola.settings.checks import given_path
from lit_dola.shipped import shipped, shipped_root

_INPUTS = {
    "model": ("model_path", "prior", "lens"),
    "data": ("prompt_json", "question_json", "item_json", "image_dir", "run"),
}
"""Settings that name files to read, by group."""
_INSTEAD = {"item_json": "run", "prompt_json": "prompts"}
"""Settings in whose presence a file is not read."""
_MAY_BE_ELSEWHERE = "model_path"
"""The setting that may also be a name on the hub."""


def shipped_configs() -> dict[str, Path]:
    """Return the configurations that come with the package, by name."""
    found = {path.stem: path for path in (shipped_root() / "configs").glob("*.yaml")}
    return {name: found[name] for name in sorted(found)}


def config_path(name: str) -> str:
    """Return the path of a configuration: a file, JSON itself, or one that comes with the package.

    Raises:
        UserError: If there is no such configuration.

    Example:
        >>> config_path("demo")
        '/home/me/lit-dola/configs/demo.yaml'
    """
    if Path(name).is_file() or name.lstrip().startswith("{"):
        return name
    known = shipped_configs()
    found = known.get(name) or shipped(name)
    if found is None:
        raise UserError(
            f"{printable(name)}: not found",
            f"a file, or one of {', '.join(known)}{suggestion(name, known)}",
            setting="config",
        )
    return str(found)


def locate_inputs(settings: Any, folders: Sequence[Path]) -> None:
    """Replace the paths of files to read by those where they exist, in place."""
    for group, name, value in _inputs(settings):
        if given_path(f"{group}.{name}", value).exists():
            continue
        beside = next((folder for folder in folders if (folder / value).exists()), None)
        if beside is not None:
            settings[group][name] = str(beside / value)
        elif name != _MAY_BE_ELSEWHERE and (found := shipped(value)):
            settings[group][name] = str(found)


def refuse_missing_inputs(settings: Any, folders: Sequence[Path]) -> None:
    """Check that files to read exist, naming all places that were searched."""
    others = [folder for folder in folders if folder.resolve() != Path.cwd()]
    for group, name, value in _inputs(settings):
        path = given_path(f"{group}.{name}", value)
        if not others or name == _MAY_BE_ELSEWHERE or path.is_absolute() or path.exists():
            continue
        looked = ", ".join(printable(str(folder)) for folder in others)
        raise UserError(
            f"{printable(value)}: not found in the working directory,"
            f" {printable(str(Path.cwd()))}, nor beside the configuration, in {looked}",
            setting=f"{group}.{name}",
        )


def _inputs(settings: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the settings that name files to read: group, name and value."""
    for group, names in _INPUTS.items():
        own = settings.get(group) or {}
        for name in names:
            value = own.get(name)
            instead = _INSTEAD.get(name)
            unused = instead and own.get(instead) is not None
            if isinstance(value, str) and value.strip() and not unused:
                yield group, name, value


def list_or_copy_configs(names: list[str], output: str) -> None:
    """List the configurations that come with the package, or copy some.

    Args:
        names: Those to copy; none: list all.
        output: Folder to copy them to.
    """
    known = shipped_configs()
    folder = given_path("output", output)
    for name in names:
        if name not in known:
            raise UserError(
                f"{printable(name)}: not found",
                f"{', '.join(known)}{suggestion(name, known)}",
                setting="configs",
            )
        if (folder / known[name].name).exists():
            raise UserError(
                f"{folder / known[name].name} exists", "another output", setting="configs"
            )
    if not names:
        width = max(map(len, known))
        for name, path in known.items():
            print(f"{name:{width}}  {_about(path)}")
        return
    with writing_to(folder, "output"):
        folder.mkdir(parents=True, exist_ok=True)
        copies = [Path(shutil.copy(known[name], folder)) for name in names]
    for copy in copies:
        print(printable(str(copy)))


def _about(path: Path) -> str:
    """Return the first sentence of a configuration's comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment: list[str] = []
    for line in lines[1:]:  # the first one names the schema
        if not line.startswith("# ") or line.startswith("#  "):
            break
        comment.append(line.removeprefix("# "))
    return re.split(r"\. (?=[A-Z])", " ".join(comment))[0].rstrip(".")
