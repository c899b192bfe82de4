"""Log-probabilities of drawn tokens: against the plain float64 loop, in files and in Python."""

import json

import numpy as np
import pytest
import torch

from lit_dola.data.requests import RequestKey
from lit_dola.decoding.loop import cfg_pair
from lit_dola.decoding.pool import token_generator
from lit_dola.decoding.sampling import EntropyTemperature
from lit_dola.errors import UserError
from lit_dola.pipeline import JanusPipeline
from tests.decoding import test_loop
from tests.support.commands import CPU, one_line, records, succeed
from tests.support.images import BATCH, PROMPTS, expected, slow
from tests.support.scoring import make_scoring

FEW = [BATCH[0], BATCH[2]]


def measure(janus, encoder, settings, batch=BATCH, **loop):
    """Return the tokens and log-probabilities ``(2, images, tokens)`` of a batch."""
    scoring = {name: value for name, value in settings.items() if name != "layer"}
    if changing := scoring.get("entropy_temperature"):
        scoring["entropy_temperature"] = EntropyTemperature(*changing)
    generate = token_generator(
        janus, janus.image_head, make_scoring(**scoring), layer=settings["layer"],
        max_new_tokens=janus.num_image_tokens, **{"logprobs": True, **loop},
    )  # fmt: skip
    branches = [
        cfg_pair(encoder.encode(PROMPTS[prompt]), janus.pad_token_id) for prompt, _ in batch
    ]
    tokens = generate(branches, [RequestKey(*key) for key in batch])
    return tokens.tolist(), generate.logprobs


@pytest.fixture(scope="module")
def janus64(load):
    return load(torch.float64)


MORE = [{"layer": 6, "contrast": "guide", "beta": 0.5, "cfg_weight": 1.5}]
SETTINGS = [*test_loop.SETTINGS, *test_loop.MORE_SETTINGS, *MORE]


@pytest.mark.parametrize("window", [None, *slow([5])])
@pytest.mark.parametrize("settings", [*SETTINGS[1:3], *slow([SETTINGS[0], *SETTINGS[3:]])], ids=str)
def test_those_of_the_plain_reference(settings, window, janus64, reference_model, encoder):
    found, logprobs = measure(janus64, encoder, settings, FEW, window=window)
    theirs = []
    plain = {k: v for k, v in settings.items() if k != "contrast"}
    tokens = expected(reference_model, encoder, FEW, found, logprobs=theirs, **plain)
    assert tokens == found
    assert logprobs.dtype == torch.float32
    by_image = np.array(theirs).reshape(len(FEW), -1, 2)
    np.testing.assert_allclose(logprobs.numpy(), by_image.transpose(2, 0, 1), rtol=1e-5, atol=1e-5)
    assert (logprobs[0] < 0).all()
    assert (logprobs[1] <= 0).all()
    if settings.get("temperature") == 0:
        assert (logprobs[1] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "loop",
    [{"window": 4, "places": 2}, {"window": 40}, {"window": 3, "adapts": False}],
    ids=str,
)
def test_the_same_from_several_tokens_per_pass(loop, load, encoder):
    janus, settings = load(torch.float32), {"layer": 6, "alpha": 0.02, "strength": 0.3}
    tokens, logprobs = measure(janus, encoder, settings)
    others, their_logprobs = measure(janus, encoder, settings, **loop)
    assert others == tokens
    torch.testing.assert_close(their_logprobs, logprobs, rtol=1e-4, atol=1e-4)
    assert measure(janus, encoder, settings, logprobs=False) == (tokens, None)


@pytest.mark.slow
def test_the_same_from_a_compiled_step(load, encoder):
    janus, settings = load(torch.float32), {"layer": 6, "top_p": 0.9}
    tokens, logprobs = measure(janus, encoder, settings)
    others, their_logprobs = measure(janus, encoder, settings, compile=True)
    torch.compiler.reset()
    assert others == tokens
    torch.testing.assert_close(their_logprobs, logprobs, rtol=1e-4, atol=1e-4)


@pytest.fixture
def predict(main_here, tmp_path, tiny_checkpoint):
    def run(save_tokens, *more):
        (tmp_path / "prompt.json").write_text(json.dumps(PROMPTS))
        return main_here(
            tmp_path, "predict", *CPU, f"--model.model_path={tiny_checkpoint}",
            "--model.parallel_size=2", "--writer.output_dir=out",
            f"--writer.save_tokens={save_tokens}", *more,
        )  # fmt: skip

    return run


def arrays(folder):
    """The three arrays of each image of a run, in the order of its records."""
    files = [(folder / it["file_name"]).with_suffix(".npz") for it in records(folder)]
    return [dict(np.load(file)) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--model.speculative=4", "--model.images_per_batch=2"]])
def test_in_files_and_in_python(more, predict, tiny_checkpoint, tmp_path):
    succeed(predict("logprobs", *more))
    found = arrays(tmp_path / "out")
    assert {name: (it.dtype, it.shape) for name, it in found[0].items()} == {
        "tokens": (np.int32, (16,)),
        "logprob": (np.float32, (16,)),
        "sampled_logprob": (np.float32, (16,)),
    }
    pipeline = JanusPipeline.from_pretrained(tiny_checkpoint, device="cpu")
    made = pipeline(PROMPTS, parallel_size=2, logprobs=True, progress=False)
    assert (made.tokens.numpy() == [it["tokens"] for it in found]).all()
    for name, ours in (("logprob", made.logprobs), ("sampled_logprob", made.sampled_logprobs)):
        np.testing.assert_allclose(ours.numpy(), [it[name] for it in found], rtol=1e-4, atol=1e-5)
    made.save(tmp_path / "saved", save_tokens="logprobs")
    for one, other in zip(arrays(tmp_path / "saved"), found):
        assert (one["tokens"] == other["tokens"]).all()
    made.save(tmp_path / "plain", save_tokens=True)
    assert len([*(tmp_path / "plain").glob("*/*.npy")]) == 6


@pytest.mark.slow
def test_images_without_them_are_generated_again(predict, tmp_path):
    succeed(predict("true"))
    assert "nothing to do" in succeed(predict("true")).stderr
    done = succeed(predict("logprobs"))
    assert "6 images to generate" in done.stderr
    assert "nothing to do" in succeed(predict("logprobs")).stderr
    damaged = next((tmp_path / "out").glob("*/img_01.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert "1 image to generate" in succeed(predict("logprobs")).stderr
    np.load(damaged)["logprob"]
    one_line(predict("probs"), 2, "writer.save_tokens")


def test_nothing_is_measured_unless_asked_for(tiny_checkpoint, tmp_path):
    pipeline = JanusPipeline.from_pretrained(tiny_checkpoint, device="cpu")
    made = pipeline("a cat", parallel_size=1, progress=False)
    assert (made.logprobs, made.sampled_logprobs) == (None, None)
    with pytest.raises(UserError, match=r"^save_tokens: no log-probabilities were measured"):
        made.save(tmp_path / "out", save_tokens="logprobs")
    assert not (tmp_path / "out/metadata.jsonl").exists()
