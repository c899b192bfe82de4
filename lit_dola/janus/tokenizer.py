"""From a prompt to token ids: Janus' conversation template and its tokenizer.

In both checkpoint layouts the tokenizer is ``tokenizer.json`` itself. The published
``tokenizer_class`` says LlamaTokenizerFast although the file is byte-level BPE, so a tokenizer
built from that class name would split text differently from how the model was trained.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lit_dola.errors import UserError

Roles = Literal["auto", "pro", "base"]

_ROLE_NAMES = {"pro": ("<|User|>", "<|Assistant|>"), "base": ("User", "Assistant")}
_SFT_FORMATS = ("deepseek", "deepseek_old")
"""DeepSeek's conversation templates. They differ only in role names, which are set here."""
_SPECIAL_TOKENS = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
    "boi_token": "<begin_of_image>",
}
"""DeepSeek's special tokens, used unless ``tokenizer_config.json`` names others."""


def unconditional_ids(input_ids: Sequence[int], pad_token_id: int) -> tuple[int, ...]:
    """Return the unconditional branch of a prompt for classifier-free guidance.

    Every token between the first (BOS) and the last (begin-of-image) becomes the pad token, which
    is attended to, as in DeepSeek's ``generation_inference.py``.
    """
    return (input_ids[0], *[pad_token_id] * (len(input_ids) - 2), input_ids[-1])


class PromptEncoder:
    """Encodes prompts as DeepSeek's ``generation_inference.py`` does.

    Args:
        folder: Folder of the checkpoint, in either layout.
        roles: ``pro`` (``<|User|>``, ``<|Assistant|>``), ``base`` (``User``, ``Assistant``), or
            ``auto``: the checkpoint's chat template if it has one, else ``base`` for a name that
            ends in Janus-1.3B, else ``pro``.
        name: The name by which the user gave the checkpoint; the folder's own if None.

    Raises:
        UserError: If a file is missing or broken, or a special token is not in the vocabulary.
    """

    def __init__(self, folder: Path, roles: Roles = "auto", name: str | None = None) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: not found; expected the tokenizer of a Janus checkpoint")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise UserError(
                f"{path}: not a tokenizer of the tokenizers library: {error}"
            ) from error
        config = _read_json(folder / "tokenizer_config.json")
        ids = {key: self._special_id(path, config, key) for key in _SPECIAL_TOKENS}
        self.bos_token_id, self.pad_token_id = ids["bos_token"], ids["pad_token"]
        self.boi_token_id = ids["boi_token"]

        chat_template = _chat_template(folder, config) if roles == "auto" else None
        self._renderer = chat_template and PreTrainedTokenizerFast(
            tokenizer_object=self._tokenizer, chat_template=chat_template
        )
        if roles == "auto":
            roles = "base" if (name or folder.name).rstrip("/").endswith("Janus-1.3B") else "pro"
        self._user, self._assistant = _ROLE_NAMES[roles]
        self._check_sft_format(folder)

    def text(self, prompt: str) -> str:
        """Return the prompt in its conversation, without BOS and begin-of-image."""
        prompt = prompt.strip()
        if self._renderer:
            message = {"role": "user", "content": [{"type": "text", "text": prompt}]}
            rendered = self._renderer.apply_chat_template(
                [message], add_generation_prompt=True, tokenize=False
            )
            return str(rendered)
        return f"{self._user}: {prompt}\n\n{self._assistant}:"

    def encode(self, prompt: str) -> list[int]:
        """Return token ids from BOS to begin-of-image, both included."""
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
    def _check_sft_format(folder: Path) -> None:
        """Check the conversation template that the original layout names: only DeepSeek's works."""
        path = folder / "processor_config.json"
        sft_format = _read_json(path).get("sft_format", "deepseek")
        if sft_format not in _SFT_FORMATS:
            raise UserError(f"{path}: sft_format is {sft_format!r}; expected 'deepseek'")


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """Return the checkpoint's chat template, from any of the places where transformers keeps it."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for config in (
        _read_json(folder / "chat_template.json"),
        _read_json(folder / "processor_config.json"),
        tokenizer_config,
    ):
        if template := config.get("chat_template"):
            return str(template)
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
