"""From a prompt to token ids: the conversation template of Janus and its tokenizer.

The tokenizer is ``tokenizer.json`` as it stands, in both checkpoint layouts: the published
``tokenizer_class`` says LlamaTokenizerFast though the file is byte-level BPE, so a class built
from that name would cut the text otherwise than the model was trained.
"""

import json
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lit_dola.errors import UserError

Roles = Literal["auto", "pro", "base"]

_ROLE_NAMES = {"pro": ("<|User|>", "<|Assistant|>"), "base": ("User", "Assistant")}
_SFT_FORMATS = ("deepseek", "deepseek_old")
"""DeepSeek's conversation templates: alike but for default role names, which are given here."""
_SPECIAL_TOKENS = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
    "boi_token": "<begin_of_image>",
}
"""DeepSeek's names, used where ``tokenizer_config.json`` gives no other."""


class PromptEncoder:
    """Encodes prompts as DeepSeek's ``generation_inference.py`` does.

    Args:
        checkpoint: Folder of the checkpoint, in either layout.
        roles: ``pro`` (``<|User|>``, ``<|Assistant|>``), ``base`` (``User``, ``Assistant``), or
            ``auto``: the checkpoint's chat template when it has one, else ``base`` for a folder
            whose name ends in Janus-1.3B, else ``pro``.
        name: The name that the user gave the checkpoint; what ``auto`` looks at.

    Raises:
        UserError: If a file is missing or broken, or a special token is not in the vocabulary.
    """

    def __init__(self, checkpoint: Path, roles: Roles = "auto", name: str | None = None) -> None:
        path = checkpoint / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: not found; expected the tokenizer of a Janus checkpoint")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise UserError(
                f"{path}: not a tokenizer of the tokenizers library: {error}"
            ) from error
        config = _read_json(checkpoint / "tokenizer_config.json")
        ids = {key: self._special_id(path, config, key) for key in _SPECIAL_TOKENS}
        self.bos_token_id, self.pad_token_id = ids["bos_token"], ids["pad_token"]
        self.boi_token_id = ids["boi_token"]

        chat_template = _chat_template(checkpoint, config) if roles == "auto" else None
        self._renderer = chat_template and PreTrainedTokenizerFast(
            tokenizer_object=self._tokenizer, chat_template=chat_template
        )
        if roles == "auto":
            roles = (
                "base" if (name or checkpoint.name).rstrip("/").endswith("Janus-1.3B") else "pro"
            )
        self._user, self._assistant = _ROLE_NAMES[roles]
        self._check_sft_format(checkpoint)

    def text(self, prompt: str) -> str:
        """The prompt in its conversation, without BOS and begin of image."""
        prompt = prompt.strip()
        if self._renderer:
            message = {"role": "user", "content": [{"type": "text", "text": prompt}]}
            rendered = self._renderer.apply_chat_template(
                [message], add_generation_prompt=True, tokenize=False
            )
            return str(rendered)
        return f"{self._user}: {prompt}\n\n{self._assistant}:"

    def encode(self, prompt: str) -> list[int]:
        """Token ids from BOS to begin of image, both included."""
        ids = self._tokenizer.encode(self.text(prompt), add_special_tokens=False).ids
        return [self.bos_token_id, *ids, self.boi_token_id]

    def _special_id(self, path: Path, config: dict[str, Any], key: str) -> int:
        token = config.get(key) or config.get("extra_special_tokens", {}).get(key)
        if isinstance(token, dict):  # a serialized AddedToken
            token = token.get("content")
        token = token or _SPECIAL_TOKENS[key]
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise UserError(f"{path}: {key} {token!r} is not in the vocabulary")
        return token_id

    @staticmethod
    def _check_sft_format(checkpoint: Path) -> None:
        """The original layout names its conversation template; only DeepSeek's is known."""
        path = checkpoint / "processor_config.json"
        sft_format = _read_json(path).get("sft_format", "deepseek")
        if sft_format not in _SFT_FORMATS:
            raise UserError(f"{path}: sft_format is {sft_format!r}; expected 'deepseek'")


def _chat_template(checkpoint: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The checkpoint's chat template, from any of the places where transformers keeps it."""
    jinja = checkpoint / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for config in (
        _read_json(checkpoint / "chat_template.json"),
        _read_json(checkpoint / "processor_config.json"),
        tokenizer_config,
    ):
        if template := config.get("chat_template"):
            return template
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
