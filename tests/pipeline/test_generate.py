"""The Python interface returns the same images as the command line."""

import inspect
import json
import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import lit_dola
from lit_dola import JanusPipeline, LitDoLa
from lit_dola.errors import UserError
from lit_dola.pipeline import ImageCall
from tests.support import forked
from tests.support.commands import CPU, files

PROMPTS = ["two blue birds on a branch in the morning", "a red apple"]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return JanusPipeline.from_pretrained(str(tiny_checkpoint))


@pytest.mark.slow
def test_images_are_those_of_the_command_line(pipeline, tiny_checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    done = forked.run(
        tmp_path,
        [
            "predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2",
            "--data.prompt_json=prompts.txt", "--model.alpha=0.3", "--model.seed=5",
            "--writer.save_tokens=true", "--writer.format=png",
        ],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = pipeline.generate(PROMPTS, alpha=0.3, seed=5, parallel_size=2, images_per_batch=3)
    tokens = [np.load(path) for path in sorted(tmp_path.rglob("*.npy"))]
    assert made.tokens.dtype == torch.int32
    assert np.array_equal(made.tokens.numpy(), np.stack(tokens))
    for image, path in zip(made.images, sorted(tmp_path.rglob("*.png")), strict=True):
        with Image.open(path) as written:
            assert np.array_equal(np.asarray(image), np.asarray(written))


def test_dola_off_is_the_baseline(pipeline):
    with_dola, without = (pipeline.generate("a red apple", dola=on, parallel_size=1)
                          for on in (True, False))  # fmt: skip
    assert not torch.equal(with_dola.tokens, without.tokens)
    again = pipeline.generate(["a red apple"], dola=False, alpha=0.7, parallel_size=1)
    assert torch.equal(again.tokens, without.tokens)


def test_tokens_decode_to_the_same_images(pipeline):
    made = pipeline.generate(PROMPTS, parallel_size=1)
    decoded = pipeline.decode(made.tokens)
    assert [np.asarray(image).tolist() for image in decoded] == [
        np.asarray(image).tolist() for image in made.images
    ]


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ("a", {"alpha": 2}, "^alpha: 2; expected a number, 0 <= alpha <= 1$"),
        ("a", {"alpha": "x"}, "^alpha: 'x'; expected a number, 0 <= alpha <= 1$"),
        ("a", {"top_k": 0}, "^top_k: 0; expected an integer, 0 < top_k, or None$"),
        ("a", {"apc": "all"}, "^apc: 'all'; expected 'cond', 'intersection', 'union' or 'per_br"),
        ("a", {"compile": 3}, "^compile: 3; expected True or False, or 'auto'$"),
        ("a", {"entropy_temperature": [1]}, r"^entropy_temperature: \[1\]; expected 3 of: a numb"),
        ("a", {"guidance_scale": 3}, "^guidance_scale: a name of diffusers; expected cfg_weight"),
        ("a", {"height": 384}, "^height: a name of diffusers; there is no such setting: images"),
        ("a", {"alhpa": 0.2}, "alhpa: not a setting of the model; did you mean alpha"),
        ("a", {"quantize": "int8wo"}, "quantize: not a setting of generate"),
        ([], {}, "prompts: empty"),
        (["a", " "], {}, "prompts: entry 1: prompt is empty"),
        ("word " * 9000, {}, "prompts: entry 0: prompt has .* tokens; expected at most"),
        ("a", {"layer": 99}, "^layer: 99 is not a middle layer"),
        ("a", {"inspect": True, "dola": False}, "^inspect: DoLa is off; expected dola true$"),
        ("a", {"callback_on_step": 3}, "^callback_on_step: found int; expected a function"),
        ("a", {"callback_on_step_end": print}, "^callback_on_step_end: a name of diffusers"),
        ("a", {"seed": "x"}, "^seed: 'x'; expected integers, 0 <= seed <= 4294967295$"),
        ("a", {"seed": [1, 2.0]}, r"^seed: 2.0; expected integers"),
        ("a", {"seed": [1, 2**32]}, r"^seed: 4294967296; expected integers"),
        ("a", {"seed": []}, r"^seed: 0 seeds for 1 prompt\(s\); expected one for each image$"),
        (["a", "b"], {"seed": [1, 2, 3]}, r"^seed: 3 seeds for 2 prompt\(s\); expected one for"),
        ("a", {"seed": [1], "parallel_size": 2}, r"^seed: 1 seeds for 1 prompt\(s\) of 2 images"),
        (3, {}, "^prompts: found int; expected a text or a list of texts$"),
    ],
)
def test_errors(pipeline, prompts, settings, message):
    with pytest.raises(UserError, match=message):
        pipeline.generate(prompts, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "more"), [("png", {}), ("jpg", {"quality": 80}), ("webp", {"save_tokens": True})]
)
def test_what_is_saved_is_what_predict_writes(pipeline, tiny_checkpoint, tmp_path, format, more):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    done = forked.run(
        tmp_path,
        [
            "predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2",
            "--data.prompt_json=prompts.txt", "--model.alpha=0.3", f"--writer.format={format}",
            "--writer.output_dir=a/run", *(f"--writer.{k}={v}" for k, v in more.items()),
        ],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = pipeline(PROMPTS, alpha=0.3, parallel_size=2, progress=False)
    page = made.save(tmp_path / "b/run", format=format, **more)
    assert page == tmp_path / "b/run/index.html"
    assert files(tmp_path / "b/run") == files(tmp_path / "a/run")
    written = [path.read_bytes() for path in sorted((tmp_path / "a/run").glob(f"*/*.{format}"))]
    assert [
        made.encode(place, format=format, quality=more.get("quality", 95)) for place in range(4)
    ] == written
    with pytest.raises(UserError, match=r"folder: .*run holds results of a run; expected another"):
        made.save(tmp_path / "b/run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"folder: cannot write to .*file"):
        made.save(tmp_path / "file")


@pytest.mark.slow
@pytest.mark.parametrize("images_per_batch", ["auto", 3])
def test_records_in_low_precision_are_those_of_predict(tiny_checkpoint, tmp_path, images_per_batch):
    """They also have what batches were made with, in the same place."""
    done = forked.run(
        tmp_path,
        [
            "predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2",
            f"--data.prompts={json.dumps(PROMPTS)}", "--trainer.precision=bf16-true",
            f"--model.images_per_batch={images_per_batch}", "--writer.output_dir=a/run",
        ],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    in_bfloat16 = JanusPipeline.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    made = in_bfloat16(PROMPTS, parallel_size=2, images_per_batch=images_per_batch, progress=False)
    made.save(tmp_path / "b/run")
    assert files(tmp_path / "b/run") == files(tmp_path / "a/run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"dola": False}, {"negative_prompt": "a dog", "alpha": 0}]
)
def test_calls_in_company_are_the_calls_alone(pipeline, settings):
    calls = [
        ImageCall(PROMPTS[0], 2, seed=3), ImageCall(PROMPTS[1]), ImageCall(PROMPTS[0], 2, seed=3),
        ImageCall("a " + PROMPTS[1], 3, seed=8),
    ]  # fmt: skip
    alone = {
        call: pipeline(
            call.prompt, parallel_size=call.images, seed=call.seed, progress=False, **settings
        )
        for call in dict.fromkeys(calls)
    }
    for images_per_batch in (1, 4, 16):
        together = pipeline.generate_each(
            calls, images_per_batch=images_per_batch, progress=False, **settings
        )
        assert len(together) == len(calls)
        for call, made in zip(calls, together):
            assert torch.equal(made.tokens, alone[call].tokens)
            assert made.records == alone[call].records
            places = range(call.images)
            assert [*map(made.encode, places)] == [*map(alone[call].encode, places)]


def test_a_bad_call_is_named(pipeline):
    with pytest.raises(UserError, match=r"^prompts: entry 1: prompt is empty"):
        pipeline.generate_each([ImageCall("a"), ImageCall(" ")], progress=False)
    with pytest.raises(UserError, match=r"^alpha: 2; expected"):
        pipeline.generate_each([ImageCall("a")], alpha=2)


def test_a_result_knows_how_it_was_made(pipeline):
    made = pipeline(PROMPTS, parallel_size=2, alpha=0.3, seed=7)
    assert len(made) == len(list(made)) == 4
    assert [record.prompt for record in made.records] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert [record.image_index for record in made.records] == [0, 1, 0, 1]
    assert made.records[0].settings["seed"] == 7
    told = json.loads(made.images[3].info["parameters"])
    assert (told["alpha"], told["prompt"], told["image_index"]) == (0.3, PROMPTS[1], 1)
    assert made.images[0].info["prompt"] == PROMPTS[0]
    assert repr(made) == (
        f"<4 images of 16 x 16: {PROMPTS[0]!r} and 1 more; dola=True, alpha=0.3, strength=1.0,"
        f" layer={told['layer']}, cfg_weight=5.0, seed=7>"
    )
    assert "dola=False, cfg_weight=5.0" in repr(pipeline("a", dola=False, parallel_size=1))
    assert repr(pipeline).startswith("<JanusPipeline ")
    assert repr(pipeline).endswith("M parameters, float32, cpu>")


def test_the_signature_tells_every_setting():
    parameters = inspect.signature(JanusPipeline.generate).parameters
    settings = inspect.signature(LitDoLa).parameters
    left_out = {"model_path", "roles", "backend", "quantize"}
    own = {"self", "prompts", "progress", "callback_on_step", "logprobs"}
    assert parameters.keys() - own == settings.keys() - left_out
    for name in parameters.keys() & settings.keys() - {"inspect"}:
        assert parameters[name].default == settings[name].default
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"\n            {name}: " in JanusPipeline.generate.__doc__
    assert "settings: " not in JanusPipeline.generate.__doc__
    assert JanusPipeline.__call__ is JanusPipeline.generate


def test_a_checkpoint_that_is_not_there():
    with pytest.raises(UserError, match=r"no folder '\./nowhere'"):
        JanusPipeline.from_pretrained("./nowhere")
    with pytest.raises(UserError, match=r"dtype: torch.int8; expected one of torch.float32"):
        JanusPipeline.from_pretrained("checkpoints/shapes-janus", dtype=torch.int8)


@pytest.mark.slow
def test_bfloat16(tiny_checkpoint):
    pipeline = JanusPipeline.from_pretrained(str(tiny_checkpoint), dtype=torch.bfloat16)
    assert pipeline.janus.language_model.embed_tokens.weight.dtype == torch.bfloat16
    assert pipeline.generate("a red apple", parallel_size=1).tokens.shape == (1, 16)
    assert torch.get_default_dtype() == torch.float32


def test_nothing_is_left_changed(pipeline, capfd):
    level, filters = logging.getLogger("lightning.pytorch").level, [*warnings.filters]
    pipeline.generate("a red apple", parallel_size=1)
    assert logging.getLogger("lightning.pytorch").level == level
    assert warnings.filters == filters
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_maths_needs_no_lightning(tmp_path):
    assert "JanusPipeline" in lit_dola.__all__
    with pytest.raises(AttributeError, match="nothing"):
        lit_dola.nothing  # noqa: B018

    code = "import sys, lit_dola.dola; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"format": "jpeg"}, "format: 'jpeg'; expected jpg or png or webp"),
        ({"format": None}, "format: None; expected jpg or png or webp"),
        ({"quality": 0}, "quality: 0; expected an integer, 1 to 100"),
        ({"quality": 101, "format": "png"}, "quality: 101; expected an integer"),
        ({"quality": 9.5}, "quality: 9.5; expected an integer"),
    ],
)
def test_a_format_or_a_quality_that_there_is_not(how, message, tiny_checkpoint, tmp_path):
    made = JanusPipeline.from_pretrained(tiny_checkpoint)("a cat", parallel_size=1, progress=False)
    for use in (made.encode, lambda **how: made.save(tmp_path / "out", **how)):
        with pytest.raises(UserError, match=f"^{message}"):
            use(**how)
