"""Settings that a checkpoint recommends: the object ``lit_dola`` of its ``generation_config.json``.

Flags, configurations and the environment override them; they override the defaults.
"""

from dataclasses import fields
from typing import Any

from lit_dola.decoding.guidance import Scoring
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import generation_config
from lit_dola.tasks.generate import LitDoLa

RECOMMENDABLE = (
    "layer_ratio", "layer", *(field.name for field in fields(Scoring) if field.name != "seed"),
)  # fmt: skip
"""Settings of the model that a checkpoint may recommend: those that shape the distribution."""


def recommended_settings(model_path: str) -> dict[str, Any]:
    """Return the settings that a checkpoint recommends, by name; often none.

    Args:
        model_path: As the setting ``model.model_path``.

    Raises:
        UserError: If ``generation_config.json`` is unusable, or recommends what it cannot.

    Example:
        >>> recommended_settings("deepseek-ai/Janus-Pro-7B")
        {}
    """
    path, config = generation_config(model_path)
    found = config.get("lit_dola", {})
    if not isinstance(found, dict):
        raise UserError(f"{path}: lit_dola is {found!r:.40}; expected an object of settings")
    if not found:  # as nearly always: spare every start a parser
        return {}
    for name in found:
        if name not in RECOMMENDABLE:
            raise UserError(
                f"{path}: lit_dola: {name} cannot be recommended; expected"
                f" {', '.join(RECOMMENDABLE)}"
            )
    try:
        LitDoLa.checked(found)
    except UserError as error:
        raise UserError(f"{path}: lit_dola: {error}") from error
    return found
