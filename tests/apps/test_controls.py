"""The playground's controls, without a browser."""

import pytest
from jsonargparse.typing import PositiveInt

pytest.importorskip("gradio")

from lit_dola import JanusPipeline, LitDoLa
from lit_dola.apps.controls import CONTROLS, ModelControls, plain
from lit_dola.apps.limits import Limits
from lit_dola.apps.studio import Studio, Wish
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.settings.numbers import GuidanceScale, NonNegativeFinite
from tests.decoding.test_lens import write_lens

pytestmark = pytest.mark.slow


@pytest.fixture
def lens(tiny_checkpoint, tmp_path):
    return str(write_lens(tmp_path / "lens.safetensors", Checkpoint.open(str(tiny_checkpoint))))


@pytest.fixture
def controls(tiny_checkpoint, lens):
    def build(**settings):
        model = LitDoLa(model_path=str(tiny_checkpoint), layer=3, lens=lens, **settings)
        return ModelControls(model, Checkpoint.open(str(tiny_checkpoint)))

    return build


def test_the_page_starts_with_the_settings_of_the_command_line(controls, lens):
    built = controls(contrast="guide", beta=1.5, cfg_weight=1.0, alpha=0.02)
    contrast, lensed, *sliders = built.build()
    assert (contrast.value, lensed.value, lensed.visible) == ("guide", True, True)
    assert [name for name, _ in contrast.choices] == ["dola", "guide"]
    values = {slider.elem_id: slider.value for slider in sliders}
    assert [*values] == [*CONTROLS]
    assert (values["beta"], values["layer"], values["alpha"]) == (1.5, 3, 0.02)
    for slider in sliders:
        assert slider.minimum <= slider.value <= slider.maximum
    settings = built.settings([contrast.value, lensed.value, *values.values()])
    assert settings == {**values, "contrast": "guide", "lens": lens}
    assert type(built.settings(["dola", True, 1, 1, 0.1, 3.0, 5, 1])["layer"]) is int


def test_numbers_of_the_parser_are_plain_ones_on_the_page(controls):
    """Gradio would send them as texts, which its sliders then refuse."""
    built = controls(beta=NonNegativeFinite(1.5), cfg_weight=GuidanceScale(2.0))
    built.model.hparams["layer"] = PositiveInt(3)
    sliders = built.build()[2:]
    assert {type(slider.value) for slider in sliders} == {int, float}
    assert type(plain(PositiveInt(4))) is int


def test_a_visitor_leaves_the_lens_out_but_chooses_no_file(controls, lens):
    built = controls()
    values = [slider.value for slider in built.build()[2:]]
    assert built.settings(["dola", False, *values])["lens"] is None
    assert built.settings(["dola", True, *values])["lens"] == lens
    assert built.settings(["dola", "/etc/passwd", *values])["lens"] == lens


def test_without_a_lens_there_is_no_box_for_it(tiny_checkpoint):
    model = LitDoLa(model_path=str(tiny_checkpoint))
    built = ModelControls(model, Checkpoint.open(str(tiny_checkpoint)))
    _, lensed, *sliders = built.build()
    assert not lensed.visible
    values = [slider.value for slider in sliders]
    assert built.settings(["guide", True, *values])["lens"] is None


def test_each_way_of_reading_the_layer_draws_its_own_image(controls, tiny_checkpoint, tmp_path):
    """And the history holds one run without DoLa, whatever the contrast was."""
    built = controls(cfg_weight=1.0, alpha=0.0)
    values = [slider.value for slider in built.build()[2:]]
    pipeline = JanusPipeline.from_pretrained(str(tiny_checkpoint))
    studio = Studio(pipeline, {}, Limits(4, 50, 2), tmp_path / "saved")
    drawings = []
    for number, ways in enumerate([("dola", False), ("dola", True), ("guide", True)]):
        *_, drawing = studio.draw(Wish("a cat", 1, 0, built.settings([*ways, *values])), number)
        drawings.append(drawing)
    assert len({tuple(it.with_dola.made.tokens.flatten().tolist()) for it in drawings}) == 3
    assert "contrast guide" in drawings[2].title
    (page,) = studio.save(drawings)
    runs = sorted(path.name for path in page.parents[1].iterdir())
    assert runs == ["0-with", "0-without", "1-with", "2-with", "compare"]
    studio.close()
