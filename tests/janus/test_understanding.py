"""The understanding path: token ids of questions, the vision tower, and what is loaded."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import JanusForConditionalGeneration, JanusProcessor

from lit_dola.errors import UserError
from lit_dola.janus import checkpoint as checkpoints
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import load_understanding
from lit_dola.janus.question import QuestionEncoder
from tests.support import original
from tests.support.plain_janus import PlainJanus
from tests.support.questions import newest_processor

SMALL = original.make_config(64, 128, 4, 4, vocab_size=512, image_size=64)
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content"
    " that the user provides, and assist the user with a variety of tasks using natural language."
)
QUESTIONS = ["What is this?", "  Is there a red apple\tin the image? \n", "猫は何匹いますか"]


@pytest.fixture
def tower(monkeypatch):
    monkeypatch.setitem(checkpoints.TOWERS, "siglip_large_patch16_384", original.SMALL_TOWER)


@pytest.fixture(scope="module")
def original_weights():
    return original.small_weights(SMALL, "understanding")


@pytest.fixture
def original_layout(tower, original_weights, tmp_path):
    folder = tmp_path / "Janus-Pro-1B"
    original.write_config(folder, SMALL)
    original.write_weights(folder, original_weights, "model.safetensors", shards=2)
    return folder


def pixels(seed=0, side=64):
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def deepseeks_ids(folder, text, tokens_per_picture):
    """The file's own byte-level BPE of the text, with each placeholder blown up."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id("<｜begin▁of▁sentence｜>")]
    for number, part in enumerate(text.split("<image_placeholder>")):
        if number:
            ids.append(tokenizer.token_to_id("<begin_of_image>"))
            ids += [tokenizer.token_to_id("<image_placeholder>")] * tokens_per_picture
            ids.append(tokenizer.token_to_id("<end_of_image>"))
        ids += tokenizer.encode(part, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("roles", ["auto", "pro", "base"])
def test_the_prompt_is_deepseeks(original_layout, question, pictures, roles):
    user, assistant = ("User", "Assistant") if roles == "base" else ("<|User|>", "<|Assistant|>")
    images = "<image_placeholder>\n" * pictures
    text = f"{SYSTEM}\n\n{user}: {images}{question}".strip() + f"\n\n{assistant}:"
    encoder = QuestionEncoder(original_layout, 16, roles)
    assert encoder.encode_question(question, pictures) == deepseeks_ids(original_layout, text, 16)


def test_a_question_says_where_its_pictures_are(original_layout):
    encoder = QuestionEncoder(original_layout, 16, "pro", system_prompt="")
    question = "Is <image_placeholder> the same as <image_placeholder>?"
    text = f"<|User|>: {question}\n\n<|Assistant|>:"
    assert encoder.encode_question(question, 2) == deepseeks_ids(original_layout, text, 16)
    llava = question.replace("<image_placeholder>", "<image>")
    assert encoder.encode_question(llava, 2) == encoder.encode_question(question, 2)
    assert encoder.encode_question(llava, 1) != encoder.encode_question(question, 2)  # a text
    with pytest.raises(UserError, match=r"has 2 <image_placeholder>; expected none, or .*: 1"):
        encoder.encode_question(question, 1)


@newest_processor
@pytest.mark.parametrize("question", QUESTIONS)
def test_transformers_layout_equals_its_own_processor(tiny_checkpoint, question):
    processor = JanusProcessor.from_pretrained(tiny_checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": question.strip()}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    picture = torch.zeros(3, 64, 64, dtype=torch.uint8)
    theirs = processor(
        text=text, images=[picture], use_default_system_prompt=True, return_tensors="pt"
    )
    ours = QuestionEncoder(tiny_checkpoint, 16).encode_question(question.strip())
    assert ours == theirs.input_ids[0].tolist()


def test_original_layout_sees_what_a_plain_reference_sees(original_layout, original_weights):
    janus = load_understanding(
        Checkpoint.open(str(original_layout)), pad_token_id=2, dtype=torch.float64
    )
    plain = PlainJanus(SMALL, original_weights)
    with torch.no_grad():
        seen = janus.embed_picture(pixels())
        torch.testing.assert_close(seen, plain.see(pixels()), atol=1e-9, rtol=0)
        states = torch.randn(2, 64, dtype=torch.float64)
        torch.testing.assert_close(janus.text_head.logits(states), plain.lm_head(states))
    assert seen.std() > 0.05


def test_what_answers_never_touch_is_not_loaded(original_layout):
    """These weights are NaN in the checkpoint."""
    janus = load_understanding(Checkpoint.open(str(original_layout)), pad_token_id=2)
    state = janus.model.state_dict()
    assert not any(name.startswith(janus.unused) for name in state)
    assert all(weight.isfinite().all() for weight in state.values())
    assert all(not weight.is_meta for weight in [*janus.parameters(), *janus.buffers()])


def test_transformers_layout_loads_the_very_weights(tiny_checkpoint):
    model = JanusForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    janus = load_understanding(Checkpoint.open(str(tiny_checkpoint)), pad_token_id=2)
    theirs, ours = model.state_dict(), janus.model.state_dict()
    assert set(theirs) - set(ours) == {name for name in theirs if name.startswith(janus.unused)}
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())
    with torch.no_grad():
        states = model.eval().model.vision_model(pixels(side=16)[None]).last_hidden_state
        assert torch.equal(janus.embed_picture(pixels(side=16)), model.model.aligner(states)[0])


@pytest.mark.parametrize(
    ("name", "last", "expected"),
    [
        ("siglip_large_patch16_384", -1, (1024, 24, 16, 4.0)),
        ("siglip_large_patch16_384", -2, (1024, 23, 16, 4.0)),
        ("siglip_so400m_patch14_384", -1, (1152, 27, 14, 3.7362)),
        ("siglip_so400m_patch14_224", 20, (1152, 20, 14, 3.7362)),
    ],
)
def test_towers_that_configs_name(name, last, expected, tmp_path):
    config = original.published_config("Janus-Pro-1B")
    config["vision_config"]["params"] |= {"model_name": name, "select_layer": last}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, translated = checkpoints.read_config(tmp_path)
    vision = translated.vision_config
    assert (
        vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.mlp_ratio
    ) == expected  # fmt: skip
    assert vision.num_attention_heads == 16
