"""What provokes the messages about prompt files and checkpoints."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tests.troubleshooting.scene import CASES, case

DEEP = json.loads("[" * 200 + "]" * 200)

PROMPTS = {
    "prompt.json: empty": [],
    "not UTF-8: invalid start byte": b"[\xff]",
    "found a number; expected a list or an object of entries": 3,
    "line 2, column 3: not JSON": '["a",\n  ]',
    "prompt.json: not JSON: nested": "[" * 100_000,
    "not JSON: NaN": '[{"prompt": "a", "weight": NaN}]',
    "found a number; expected a string or an object": [3],
    "no prompt among 'title'": ["a", {"title": "b"}],
    "an object with the keys": '{"data": [], "n": 3}',
    "prompt is null": [{"prompt": None}],
    "entry 0: prompt is empty": [" "],
    "custom_id 'a' occurs twice": [{"custom_id": "a", "body": {"prompt": "a"}}] * 2,
    "custom_id is a number": [{"custom_id": 3, "body": {"prompt": "a"}}],
    "url is '/v1/chat/completions'": [
        {"custom_id": "a", "url": "/v1/chat/completions", "body": {"prompt": "a"}}
    ],
    "n is 0; expected an integer": [{"custom_id": "a", "body": {"prompt": "a", "n": 0}}],
    "tokens; expected at most": ["a " * 2000],
    "metadata is nested too deeply": [{"prompt": "a", "boxes": DEEP}],
    "half a surrogate pair": '["\\ud83d"]',
}
"""What the prompt file holds, by a part of the message."""


def read_prompts(content, scene):
    scene.write_prompts(content)
    return scene.predict(), 1


@case("data.prompt_range: no prompt in")
def range_behind_the_prompts(scene):
    return scene.predict("--data.prompt_range=[5, 9]"), 1


@case("two columns are called")
def same_columns(scene):
    (scene.folder / "prompt.csv").write_text("prompt,prompt\na,b\n")
    return scene.predict("--data.prompt_json=prompt.csv"), 1


@case("2 cells, but 1 columns")
def unquoted_comma(scene):
    (scene.folder / "prompt.csv").write_text("prompt\na, b\n")
    return scene.predict("--data.prompt_json=prompt.csv"), 1


@case("has no layer before its final one")
def one_layer(scene):
    scene.edit("config.json", lambda config: config["text_config"].update(num_hidden_layers=1))
    return scene.predict(), 1


@case("prompt.json: not readable")
def missing_file(scene):
    (scene.folder / "prompt.json").unlink()
    return scene.predict(), 1


@case("prompt_json: empty")
def empty_path(scene):
    return scene.predict("--data.prompt_json="), 1


VALUES = {
    "model_type is 'llama'": ("config.json", ["model_type"], "llama"),
    "text_config is []": ("config.json", ["text_config"], []),
    "vocab_size is -1": ("config.json", ["text_config", "vocab_size"], -1),
    "num_hidden_layers is 5000": ("config.json", ["text_config", "num_hidden_layers"], 5000),
    "num_image_tokens is 576": ("config.json", ["vision_config", "num_image_tokens"], 576),
    "not readable as a Janus config": ("config.json", ["text_config", "rope_scaling"], 3),
    "no Janus can be built": ("config.json", ["text_config", "hidden_act"], "siluu"),
    "pad_token '<none>'": ("tokenizer_config.json", ["pad_token"], "<none>"),
    "beyond the model's vocabulary": ("config.json", ["text_config", "vocab_size"], 100),
    "lit_dola is 3": ("generation_config.json", ["lit_dola"], 3),
    "seed cannot be recommended": ("generation_config.json", ["lit_dola"], {"seed": 3}),
    "sft_format is 'vicuna'": ("processor_config.json", ["sft_format"], "vicuna"),
}
"""File, keys and value of a setting that is changed in the checkpoint, by a part of the message."""


def change_value(file, keys, value, scene):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    path = scene.copy / file
    if not path.exists():
        path.write_text("{}")
    scene.edit(file, change)
    return scene.predict(), 1


CONTENTS = {
    "config.json: not found": ("config.json", None),
    "config.json: not readable as JSON: Expecting": ("config.json", b"{"),
    "config.json: not readable as JSON: nested": ("config.json", b"[" * 100_000),
    "config.json: not readable as UTF-8": ("config.json", b"\xff"),
    "config.json: found []": ("config.json", b"[]"),
    "tokenizer.json: not found": ("tokenizer.json", None),
    "not a tokenizer of the tokenizers library": ("tokenizer.json", b"{}"),
    "the chat template renders": ("chat_template.jinja", b"hello"),
    "the chat template fails": ("chat_template.jinja", b"{{ 1 / 0 }}"),
    "no weights; expected": ("model.safetensors", None),
    "model.safetensors: not readable as weights": ("model.safetensors", b"x" * 1000),
    "Git LFS pointer": (
        "model.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    ),
}
"""A file of the checkpoint and what it holds, by a part of the message; None: it is missing."""


def change_content(file, content, scene):
    (scene.copy / file).unlink()
    if content is not None:
        (scene.copy / file).write_bytes(content)
    return scene.predict(), 1


INDEXES = {
    "weight_map is []": [],
    "names '../a.safetensors'": {"x": "../a.safetensors"},
    "though model.safetensors.index.json names it": {"x": "a.safetensors"},
}
"""What the index of the weights names, by a part of the message."""


def change_index(weight_map, scene):
    content = json.dumps({"weight_map": weight_map})
    (scene.copy / "model.safetensors.index.json").write_text(content)
    return scene.predict(), 1


for message, content in PROMPTS.items():
    CASES[message] = partial(read_prompts, content)
for message, change in VALUES.items():
    CASES[message] = partial(change_value, *change)
for message, change in CONTENTS.items():
    CASES[message] = partial(change_content, *change)
for message, weight_map in INDEXES.items():
    CASES[message] = partial(change_index, weight_map)


@case("no folder './nowhere'")
def no_folder(scene):
    return scene.predict("--model.model_path=./nowhere"), 1


@case("is not a local folder, and it could not be fetched")
def no_network(scene):
    return scene.predict("--model.model_path=deepseek-ai/Janus-Pro-7B"), 1


@case("is not UTF-8; expected UTF-8")
def name_of_bytes(scene):
    scene.checkpoint = Path(scene.copy.rename(os.fsdecode(os.fsencode(scene.copy) + b"\xff")))
    return scene.predict(), 1


@case("setting 'vq_config' is missing")
def missing_setting(scene):
    scene.edit("config.json", lambda config: config.pop("vq_config"))
    return scene.predict(), 1


@case("chat_template is 3")
def template_of_another_type(scene):
    (scene.copy / "chat_template.jinja").unlink()
    scene.edit("tokenizer_config.json", lambda config: config.update(chat_template=3))
    return scene.predict(), 1


@case("chosen by the name")
def guessed_roles(scene):
    (scene.copy / "chat_template.jinja").unlink()
    return scene.predict(), 0


@case("recommends alpha 0.3")
def recommended(scene):
    scene.edit("generation_config.json", lambda config: config.update(lit_dola={"alpha": 0.3}))
    return scene.predict(), 0


@case("weights do not fit its config.json; missing")
def missing_weight(scene):
    scene.spoil(lambda weights: weights.pop("model.language_model.norm.weight"))
    return scene.predict(), 1


@case("expected an object, name -> tensor")
def other_pickle(scene):
    (scene.copy / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], scene.copy / "pytorch_model.bin")
    return scene.predict(), 1


@case("is missing, though the index names it")
def other_shards(scene):
    (scene.copy / "model.safetensors").unlink()
    torch.save({}, scene.copy / "pytorch_model.bin")
    weight_map = {"model.language_model.norm.weight": "pytorch_model.bin"}
    content = json.dumps({"weight_map": weight_map})
    (scene.copy / "pytorch_model.bin.index.json").write_text(content)
    return scene.predict(), 1


@case("its decoder layers take none of")
def other_layers(scene):
    def forward(self, hidden_states, memory=None, **others):
        return hidden_states

    scene.monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    return scene.predict(), 1


@case("expected one text, a list of texts")
def a_list_of_numbers(scene):
    return scene.predict("--data.prompts=[3]"), 1


@case("index -2")
def a_negative_index(scene):
    return scene.predict('--data.prompts={"-2": "a"}'), 1


@case("not a table")
def broken_table(scene):
    (scene.folder / "prompt.csv").write_text('prompt\n"a')
    return scene.predict("--data.prompt_json=prompt.csv"), 1


@case("not readable as Parquet")
def broken_parquet(scene):
    pytest.importorskip("pyarrow")
    (scene.folder / "prompt.parquet").write_text("x")
    return scene.predict("--data.prompt_json=prompt.parquet"), 1


@case("a folder without prompts")
def empty_folder(scene):
    (scene.folder / "prompts").mkdir()
    return scene.predict("--data.prompt_json=prompts"), 1


@case("seed is -1")
def wrong_seed(scene):
    scene.write_prompts([{"prompt": "a", "seed": -1}])
    return scene.predict("--data.use_entry_settings=true"), 1


@case("negative_prompt is a number")
def wrong_negative_prompt(scene):
    scene.write_prompts([{"prompt": "a", "negative_prompt": 3}])
    return scene.predict("--data.use_entry_settings=true"), 1


@case("negative_prompt is empty")
def empty_negative_prompt(scene):
    return scene.predict("--model.negative_prompt="), 1


@case("data.images: empty")
def no_images(scene):
    return scene.predict("--data.images=[]"), 1
