"""Both layouts of a checkpoint: every name, every shape, and every kind of broken file."""

import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration

from lit_dola.data.requests import RequestKey
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import read_config
from lit_dola.janus.model import TransformersJanus
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.janus.weights import rename_original, weight_files
from tests.support import original, reference
from tests.support.images import ImageGenerator, load_folder
from tests.support.plain_janus import PlainJanus

SMALL = original.make_config(64, 128, 4, 4, vocab_size=512, image_size=64)


@pytest.fixture(scope="session")
def weights():
    return original.small_weights(SMALL)


@pytest.fixture(scope="module", params=["safetensors", "bin", "sharded safetensors", "sharded bin"])
def checkpoint(request, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    original.write_config(folder, SMALL)
    stem = "pytorch_model.bin" if "bin" in request.param else "model.safetensors"
    original.write_weights(folder, weights, stem, shards=3 if "sharded" in request.param else 1)
    return folder


@pytest.mark.parametrize("name", list(original.LLAMA))
@pytest.mark.slow
def test_every_published_weight_has_exactly_one_place(name, tmp_path):
    """Names and shapes match one to one, with none left over on either side."""
    (tmp_path / "config.json").write_text(json.dumps(original.published_config(name)))
    layout, config = read_config(tmp_path)
    assert layout == "multi_modality"
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    expected = {name: tuple(weight.shape) for name, weight in model.named_parameters()}

    renamed = Counter()
    without_counterpart = []
    for source, shape in original.published_shapes(name).items():
        targets = rename_original(source)
        renamed.update(targets)
        if not targets:
            without_counterpart.append(source)
        if len(targets) == 3:  # query, key and value in one
            shape = (shape[0] // 3, *shape[1:])
        if source.endswith("pos_embed"):  # (1, places, width) in one, (places, width) in the other
            shape = shape[1:]
        assert {expected[target] for target in targets} <= {shape}, source
    assert set(renamed.values()) == {1}
    assert renamed.keys() == expected.keys()
    assert all(".attn_pool." in name or ".codebook_used" in name for name in without_counterpart)


@pytest.mark.parametrize("name", list(original.LLAMA))
def test_sizes_come_from_the_published_config(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(original.published_config(name)))
    _, config = read_config(tmp_path)
    text = config.text_config
    hidden, intermediate, layers, heads = original.LLAMA[name]
    assert (text.hidden_size, text.intermediate_size) == (hidden, intermediate)
    assert (text.num_hidden_layers, text.num_attention_heads) == (layers, heads)
    assert (text.vocab_size, text.max_position_embeddings) == (102400, 16384)
    assert config.vision_config.num_image_tokens == 576
    assert config.vq_config.num_embeddings == 16384


INPUTS = ("a red apple", "two blue birds on a branch")
KEYS = (RequestKey(0, 0), RequestKey(1, 3))
SETTINGS = [
    {"layer": 3, "seed": 5},
    {"layer": 2, "mid_norm": True, "cfg_weight": 2.0},
    {"layer": None, "temperature": 0.0},
]


def plain_tokens(plain, encoder, settings, guesses):
    """The tokens of the plain reference."""
    return [
        reference.generate(
            plain,
            encoder.encode(prompt),
            encoder.pad_token_id,
            prompt_index=key.entry_index,
            image_index=key.sample_index,
            guess=guess,
            **settings,
        )
        for prompt, key, guess in zip(INPUTS, KEYS, guesses, strict=True)
    ]


@pytest.mark.slow
def test_original_layout_gives_the_tokens_and_pixels_of_a_plain_reference(checkpoint, weights):
    encoder = PromptEncoder(checkpoint)
    janus = load_folder(checkpoint, pad_token_id=encoder.pad_token_id, dtype=torch.float64)
    input_ids = [encoder.encode(prompt) for prompt in INPUTS]
    plain = PlainJanus(SMALL, weights)
    for settings in SETTINGS:
        ours = ImageGenerator(janus, **settings)(input_ids, KEYS)
        assert ours.tolist() == plain_tokens(plain, encoder, settings, ours.tolist())
    with torch.no_grad():
        decoded = janus.decode_image_tokens(ours)
    assert decoded.std() > 0.05
    torch.testing.assert_close(decoded, plain.decode_image(ours), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_what_generation_never_touches_is_not_loaded(checkpoint):
    """These weights are NaN in the checkpoint."""
    janus = load_folder(checkpoint, pad_token_id=2, dtype=torch.bfloat16)
    state = janus.model.state_dict()
    assert not any(name.startswith(TransformersJanus.unused) for name in state)
    assert all(
        weight.dtype == (torch.float32 if "vqmodel" in name else torch.bfloat16)
        for name, weight in state.items()
    )
    assert all(weight.isfinite().all() for weight in state.values())


def test_transformers_layout_loads_the_very_weights(tiny_checkpoint, load):
    model = JanusForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    theirs = model.state_dict()
    ours = load(torch.float32).model.state_dict()
    assert set(theirs) - set(ours) == {n for n in theirs if n.startswith(TransformersJanus.unused)}
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())


def load_error(folder):
    with pytest.raises(UserError) as caught:
        load_folder(folder, pad_token_id=2)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def tiny(tiny_checkpoint, tmp_path):
    """A copy of the random Janus to break."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "tiny")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


NAME = "model.generation_head.vision_head.bias"


def test_a_missing_weight_is_named(tiny):
    change_weights(tiny, lambda weights: weights.pop(NAME))
    assert f"missing: {NAME}" in load_error(tiny)


def test_a_left_over_weight_is_named(tiny):
    change_weights(tiny, lambda weights: weights.update({"model.extra": torch.zeros(1)}))
    assert "left over: model.extra" in load_error(tiny)


def test_a_wrongly_shaped_weight_is_named_with_both_shapes(tiny):
    change_weights(tiny, lambda weights: weights.update({NAME: torch.zeros(3)}))
    assert f"wrongly shaped: {NAME} (3,), expected (1024,)" in load_error(tiny)


def test_many_wrong_weights_are_counted(tiny):
    def drop(weights):
        for name in [name for name in weights if "language_model" in name]:
            del weights[name]

    change_weights(tiny, drop)
    assert "and 70 more" in load_error(tiny)


def test_a_broken_weight_file(tiny):
    (tiny / "model.safetensors").write_bytes(b"not weights")
    assert "model.safetensors: not readable as weights" in load_error(tiny)


def test_a_truncated_weight_file(tiny):
    whole = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors: not readable as weights" in load_error(tiny)


def test_a_pickle_that_would_run_code_is_refused(tiny):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran code",))

    (tiny / "model.safetensors").unlink()
    torch.save({NAME: Harmful()}, tiny / "pytorch_model.bin")
    assert "pytorch_model.bin: not readable as weights" in load_error(tiny)


def test_no_weights_at_all(tiny):
    (tiny / "model.safetensors").unlink()
    assert "no weights; expected model.safetensors or pytorch_model.bin" in load_error(tiny)


def test_a_missing_shard(tiny):
    index = {"weight_map": {NAME: "model-00001-of-00002.safetensors"}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    message = load_error(tiny)
    assert "model-00001-of-00002.safetensors: not found" in message
    assert "model.safetensors.index.json names it" in message


def test_a_weight_that_the_index_promises_and_the_shard_lacks(tiny):
    index = {"weight_map": {NAME: "model.safetensors", "model.other": "model.safetensors"}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.other" in load_error(tiny)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "found []; expected a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"weight_map": 3}', "weight_map is 3; expected an object"),
        ('{"weight_map": {"a": 3}}', "expected an object, weight -> file"),
        ("{}", "weight_map is None; expected an object"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "expected files of its own folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "expected files of its own folder"),
        ('{"weight_map": {"a": "part/model.safetensors"}}', "expected files of its own folder"),
    ],
)
def test_a_broken_index(tiny, text, message):
    (tiny / "model.safetensors.index.json").write_text(text)
    assert message in load_error(tiny)
    assert "index.json: " in load_error(tiny)


def test_safetensors_come_before_a_pickle(tiny):
    (tiny / "pytorch_model.bin").write_bytes(b"")
    assert weight_files(tiny) == {"model.safetensors": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json: not found; expected the folder of a Janus checkpoint"),
        ("{", "config.json: not readable as JSON"),
        ("[]", "config.json: found []; expected a JSON object"),
        ("[" * 100_000, "config.json: not readable as JSON: nested too deeply"),
        ('{"model_type": ["janus"]}', "model_type is ['janus']; expected 'janus'"),
        ('{"model_type": "llama"}', "model_type is 'llama'; expected 'janus'"),
        ('{"model_type": "multi_modality"}', "config.json: setting 'language_config' is missing"),
    ],
)
def test_a_broken_config(tiny, text, message):
    (tiny / "config.json").unlink()
    if text is not None:
        (tiny / "config.json").write_text(text)
    assert message in load_error(tiny)


def test_a_head_that_does_not_fit_the_aligner_is_an_error(tmp_path):
    config = json.loads(json.dumps(SMALL))
    config["gen_head_config"]["params"]["image_token_embed"] = 32
    original.write_config(tmp_path, config)
    assert "gen_head's image_token_embed is 32; expected gen_aligner's n_embed, 64" in load_error(
        tmp_path
    )
