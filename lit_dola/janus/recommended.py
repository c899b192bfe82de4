"""Settings that a checkpoint recommends: the object ``lit_dola`` of its ``generation_config.json``.

Flags, configurations and the environment override them; they override the defaults.
"""

from typing import Any

from lit_dola.errors import UserError, within
from lit_dola.janus.checkpoint import generation_config
from lit_dola.settings.declared import Declared


def recommended_settings(model_path: str, module: type[Declared]) -> dict[str, Any]:
    """Return the settings that a checkpoint recommends, by name; often none.

    Args:
        model_path: As the setting ``model.model_path``.
        module: The module that takes them.

    Raises:
        UserError: If ``generation_config.json`` is unusable, or a recommendation is invalid.

    Example:
        >>> recommended_settings("deepseek-ai/Janus-Pro-7B", LitDoLa)
        {}
    """
    path, config = generation_config(model_path)
    found = config.get("lit_dola", {})
    if not isinstance(found, dict):
        raise UserError(f"lit_dola is {found!r:.40}", "an object of settings", at=path)
    if not found:  # as nearly always: spare every start a parser
        return {}
    with within(path, "lit_dola"):
        for name in found:
            if name not in module.recommendable:
                raise UserError(f"{name} cannot be recommended", ", ".join(module.recommendable))
        module.checked(found)
    return found
