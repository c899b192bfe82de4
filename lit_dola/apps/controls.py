"""The playground's controls: their components, and the settings of the model that they mean."""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import gradio as gr

from lit_dola.decoding.scoring import ContrastForm
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.settings.declared import settings_of
from lit_dola.settings.expected import range_of
from lit_dola.tasks.generate import LitDoLa


class Control(NamedTuple):
    """A slider for a setting of the model."""

    label: str
    step: float
    most: float | None = None
    """Largest value on the page; None: that of the setting."""


CONTROLS = {
    "strength": Control("Strength", 0.05),
    "beta": Control("Beta", 0.25, most=4),
    "alpha": Control("Alpha", 0.005),
    "layer": Control("Middle layer", 1),
    "cfg_weight": Control("Guidance", 0.5, most=15),
    "temperature": Control("Temperature", 0.05, most=2),
}
"""Settings on the page, whose ranges and descriptions are those of their declarations."""


class ModelControls:
    """The controls of a model.

    Args:
        model: The model, with the settings that the page starts with.
        checkpoint: Its checkpoint.
    """

    def __init__(self, model: LitDoLa, checkpoint: Checkpoint) -> None:
        self.model = model
        self.checkpoint = checkpoint

    def build(self) -> list[Any]:
        """Return new components, in the order of the values of :meth:`settings`."""
        hparams = self.model.hparams
        contrast = gr.Radio(
            get_args(ContrastForm), value=hparams["contrast"], label="Contrast",
            info="dola subtracts the middle layer (strength); guide leads away from it (beta).",
            elem_id="contrast",
        )  # fmt: skip
        lens = gr.Checkbox(
            hparams["lens"] is not None, label="Read the middle layer through its lens",
            elem_id="lens", visible=hparams["lens"] is not None,
        )  # fmt: skip
        return [contrast, lens, *(self._slider(*each) for each in CONTROLS.items())]

    def _slider(self, name: str, control: Control) -> gr.Slider:
        setting, value = settings_of(LitDoLa)[name], self.model.hparams[name]
        least, most = range_of(setting.type)
        if name == "layer":
            with_dola = LitDoLa.checked({**self.model.hparams, "dola": True})
            value = with_dola.middle_layer(self.checkpoint)
            least, most = 1, self.checkpoint.num_layers - 1
        value = plain(value)
        return gr.Slider(
            min(least, value), max(control.most or most, value), value, step=control.step,
            label=control.label, info=setting.summary, elem_id=name,
        )  # fmt: skip

    def settings(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the settings of the model that the values of the components mean."""
        contrast, lens, *numbers = values
        settings: dict[str, Any] = dict(zip(CONTROLS, numbers))
        settings["layer"] = to_integer(settings["layer"])
        # A visitor chooses no file: the lens is the one that the page was started with, or none.
        return settings | {
            "contrast": contrast,
            "lens": self.model.hparams["lens"] if lens else None,
        }


def plain(value: float) -> float:
    """Return a number as Gradio sends it to the page: of the parser's own types it makes texts."""
    return int(value) if isinstance(value, int) else float(value)


def to_integer(value: Any) -> Any:
    """Return a number of the page as an integer; others are left to be refused."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
