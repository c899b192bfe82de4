"""Token ids of a prompt: the templates, and where a checkpoint keeps them."""

import json
import shutil

import pytest
from tokenizers import Tokenizer
from transformers import JanusProcessor

from lit_dola.errors import UserError
from lit_dola.janus.tokenizer import PromptEncoder
from tests.support import original

PROMPTS = ["a red apple", "  two blue birds,\tat night \n", "猫が海を見る", "<b>quotes \"'</b> 🙂"]
PRO = "<|User|>: {}\n\n<|Assistant|>:"
BASE = "User: {}\n\nAssistant:"


@pytest.fixture(scope="module")
def original_layout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "Janus-Pro-7B"
    original.write_config(folder, original.published_config("Janus-Pro-7B"))
    return folder


@pytest.fixture
def broken(original_layout, tmp_path):
    return shutil.copytree(original_layout, tmp_path / "broken")


def ids_of(folder, text):
    """Bytes-level BPE of the file itself, BOS before and begin of image behind."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = tokenizer.token_to_id("<｜begin▁of▁sentence｜>")
    boi = tokenizer.token_to_id("<begin_of_image>")
    return [bos, *tokenizer.encode(text, add_special_tokens=False).ids, boi]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(("roles", "template"), [("auto", PRO), ("pro", PRO), ("base", BASE)])
def test_original_layout_is_deepseeks_template(original_layout, roles, template, prompt):
    expected = ids_of(original_layout, template.format(prompt.strip()))
    assert PromptEncoder(original_layout, roles).encode(prompt) == expected


@pytest.mark.parametrize("prompt", PROMPTS)
def test_transformers_layout_equals_its_own_processor(tiny_checkpoint, prompt):
    processor = JanusProcessor.from_pretrained(tiny_checkpoint)
    message = {"role": "user", "content": [{"type": "text", "text": prompt.strip()}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    theirs = processor(text=text, generation_mode="image", return_tensors="pt")
    assert PromptEncoder(tiny_checkpoint).encode(prompt) == theirs.input_ids[0].tolist()


def test_roles_are_special_tokens_of_one_id(original_layout):
    ids = PromptEncoder(original_layout).encode("x")
    tokenizer = Tokenizer.from_file(str(original_layout / "tokenizer.json"))
    assert ids[1] == tokenizer.token_to_id("<|User|>")
    assert tokenizer.token_to_id("<|Assistant|>") in ids


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("deepseek-ai/Janus-1.3B", BASE),
        ("/models/Janus-1.3B/", BASE),
        ("deepseek-ai/Janus-Pro-1B", PRO),
        ("my-finetune", PRO),
    ],
)
def test_auto_without_a_chat_template_goes_by_the_name(original_layout, name, template):
    assert PromptEncoder(original_layout, "auto", name).text("cat") == template.format("cat")


@pytest.mark.parametrize(
    "place", ["jinja", "chat_template", "processor_config", "tokenizer_config"]
)
def test_auto_takes_the_chat_template_from_wherever_it_is(broken, place):
    template = "{% for m in messages %}Q {{ m.content[0].text }}{% endfor %} A"
    if place == "jinja":
        (broken / "chat_template.jinja").write_text(template)
    else:
        (broken / f"{place}.json").write_text(json.dumps({"chat_template": template}))
    assert PromptEncoder(broken).text(" cat ") == "Q cat A"
    assert PromptEncoder(broken, "pro").text("cat") == PRO.format("cat")


def test_pad_token_is_the_one_that_deepseek_pads_with(original_layout):
    encoder = PromptEncoder(original_layout)
    tokenizer = Tokenizer.from_file(str(original_layout / "tokenizer.json"))
    assert encoder.pad_token_id == tokenizer.token_to_id("<｜▁pad▁｜>")


def test_special_tokens_by_other_names_are_taken_from_the_config(broken):
    config = {"pad_token": {"content": "<｜end▁of▁sentence｜>"}}
    (broken / "tokenizer_config.json").write_text(json.dumps(config))
    assert PromptEncoder(broken).pad_token_id == 1


def error_of(folder):
    with pytest.raises(UserError) as caught:
        PromptEncoder(folder)
    return str(caught.value)


def test_no_tokenizer(broken):
    (broken / "tokenizer.json").unlink()
    assert "tokenizer.json: not found" in error_of(broken)


def test_broken_tokenizer(broken):
    (broken / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: not a tokenizer" in error_of(broken)


def test_special_token_that_is_not_in_the_vocabulary(broken):
    (broken / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    assert "bos_token '<s>' is not in the vocabulary" in error_of(broken)


def test_unknown_conversation_template(broken):
    (broken / "processor_config.json").write_text('{"sft_format": "llama-2"}')
    assert "sft_format is 'llama-2'; expected 'deepseek'" in error_of(broken)


def test_broken_json(broken):
    (broken / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json: not readable as JSON" in error_of(broken)


def test_a_stored_truncation_or_padding_is_not_obeyed(broken):
    prompt = "a red apple and " * 20
    expected = PromptEncoder(broken).encode(prompt)
    tokenizer = Tokenizer.from_file(str(broken / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=300)
    tokenizer.save(str(broken / "tokenizer.json"))
    assert PromptEncoder(broken).encode(prompt) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}Q {{ m.content }}{% endfor %} A",
        "{% for m in messages %}{{ 'Q ' + m.content }}{% endfor %} A",
        "{% for m in messages %}Q {{ m['content'] | trim }}{% endfor %} A",
        "{% for m in messages %}Q {% if m.content is string %}{{ m.content }}"
        "{% else %}{{ m.content[0].text }}{% endif %}{% endfor %} A",
    ],
)
def test_a_template_may_want_text_or_parts(broken, template):
    (broken / "chat_template.jinja").write_text(template)
    assert PromptEncoder(broken).text(" a 'cat' ") == "Q a 'cat' A"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no') }}", "the chat template fails"),
        ("{% for m in messages %}", "the chat template fails"),
        ("{{ messages[7].content }}", "the chat template"),
        ("{{ 1 / 0 }}", "the chat template fails"),
        ("nothing of the prompt", "without the prompt"),
        ("", None),
    ],
)
def test_a_template_that_renders_no_prompt(broken, template, message):
    if message is None:  # an empty key is as none
        (broken / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        assert PromptEncoder(broken).roles == "pro"
        return
    (broken / "chat_template.jinja").write_text(template)
    assert "chat_template.jinja: " in error_of(broken)
    assert message in error_of(broken)
    assert PromptEncoder(broken, "pro").text("cat") == PRO.format("cat")


@pytest.mark.parametrize("value", [[], {}, None, ["<image>"], "x"])
def test_extra_special_tokens_of_any_kind(broken, value):
    (broken / "tokenizer_config.json").write_text(json.dumps({"extra_special_tokens": value}))
    assert PromptEncoder(broken).boi_token_id > 0


def test_a_token_that_the_model_cannot_embed(original_layout):
    ids = PromptEncoder(original_layout).encode("a red apple")
    assert PromptEncoder(original_layout, vocab_size=max(ids) + 1).encode("a red apple") == ids
    with pytest.raises(UserError, match=r"tokenizer\.json: token \d+ is beyond the model's vocab"):
        PromptEncoder(original_layout, vocab_size=max(ids)).encode("a red apple")
