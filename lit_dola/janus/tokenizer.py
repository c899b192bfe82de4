"""From a prompt to token ids: Janus' conversation template and its tokenizer.

In both checkpoint layouts the tokenizer is ``tokenizer.json`` itself. The published
``tokenizer_class`` says LlamaTokenizerFast although the file is byte-level BPE, so a tokenizer
built from that class name would split text differently from how the model was trained.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lit_dola.errors import UserError
from lit_dola.janus.files import read_json, read_text, refuse_pointer

Roles = Literal["auto", "pro", "base"]

_ROLE_NAMES = {"pro": ("<|User|>", "<|Assistant|>"), "base": ("User", "Assistant")}
_JANUS_1_3B = re.compile(r"janus[-_ ]?1\.3b", re.IGNORECASE)
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
            ``auto``: the checkpoint's chat template if it has one, else ``base`` for the name of a
            Janus-1.3B, else ``pro``.
        name: The name by which the user gave the checkpoint; the folder's own if None.
        vocab_size: Text tokens that the model can embed; None: not checked.

    Raises:
        UserError: If a file is missing or broken, or a special token is not in the vocabulary.
    """

    roles: str
    """Roles that were chosen: ``pro``, ``base``, or ``template`` for the chat template."""
    chosen_by: str | None = None
    """The name that ``auto`` chose them by; None if it did not have to guess."""

    def __init__(
        self,
        folder: Path,
        roles: Roles = "auto",
        name: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self._path = folder / "tokenizer.json"
        self._vocab_size = vocab_size
        self._tokenizer = _load_tokenizer(self._path)
        self._config = config = read_json(folder / "tokenizer_config.json")
        ids = {name: self._special_id(name, _SPECIAL_TOKENS) for name in _SPECIAL_TOKENS}
        self.bos_token_id, self.pad_token_id = ids["bos_token"], ids["pad_token"]
        self.boi_token_id = ids["boi_token"]

        self._template = ChatTemplate.of(folder, config) if roles == "auto" else None
        if self._template:
            self.roles = "template"
        elif roles == "auto":
            self.chosen_by = _own_name(folder, name)
            self.roles = "base" if _JANUS_1_3B.search(self.chosen_by) else "pro"
        else:
            self.roles = roles
        self._check_sft_format(folder)

    def text(self, prompt: str) -> str:
        """Return the prompt in its conversation, without BOS and begin-of-image."""
        prompt = prompt.strip()
        if self._template:
            return self._template.render(prompt)
        user, assistant = _ROLE_NAMES[self.roles]
        return f"{user}: {prompt}\n\n{assistant}:"

    def encode(self, prompt: str) -> list[int]:
        """Return token ids from BOS to begin-of-image, both included."""
        return [self.bos_token_id, *self.encode_text(self.text(prompt)), self.boi_token_id]

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        self._known(max(ids, default=0))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _known(self, token: int) -> int:
        if self._vocab_size is not None and token >= self._vocab_size:
            raise UserError(
                f"token {token} is beyond the model's vocabulary of {self._vocab_size}",
                "the tokenizer of this checkpoint",
                at=self._path,
            )
        return token

    def _special_token(self, name: str, defaults: Mapping[str, str]) -> Any:
        """Return a special token as the checkpoint names it, else DeepSeek's."""
        extra = self._config.get("extra_special_tokens")
        token = self._config.get(name) or (extra.get(name) if isinstance(extra, dict) else None)
        if isinstance(token, dict):  # a serialized AddedToken
            token = token.get("content")
        return token or defaults[name]

    def _special_id(self, name: str, defaults: Mapping[str, str]) -> int:
        token = self._special_token(name, defaults)
        token_id = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
        if token_id is None:
            raise UserError(f"{name} {token!r} is not in the vocabulary", at=self._path)
        return self._known(token_id)

    @staticmethod
    def _check_sft_format(folder: Path) -> None:
        """Check the conversation template that the original layout names: only DeepSeek's works."""
        path = folder / "processor_config.json"
        sft_format = read_json(path).get("sft_format", "deepseek")
        if sft_format not in _SFT_FORMATS:
            raise UserError(f"sft_format is {sft_format!r}", "'deepseek'", at=path)


class ChatTemplate:
    """A checkpoint's own conversation template.

    Raises:
        UserError: If it renders no prompt.
    """

    def __init__(self, path: Path, template: str) -> None:
        self.path = path
        self._renderer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), chat_template=template
        )
        # Some templates want the content as parts, others as a text.
        self._in_parts = True
        parts = [_PART.format(_PROBE), json.dumps(_parts(_PROBE))]
        try:
            rendered = self._render(_PROBE)
            self._in_parts = _PROBE in rendered and not any(part in rendered for part in parts)
        except UserError:
            self._in_parts = False
        self.render(_PROBE)

    @classmethod
    def of(cls, folder: Path, tokenizer_config: dict[str, Any]) -> "ChatTemplate | None":
        """Return the template of a checkpoint, from any place where transformers keeps it."""
        path = folder / "chat_template.jinja"
        if path.is_file():
            return cls(path, read_text(path))
        for path in (folder / "chat_template.json", folder / "processor_config.json"):
            if template := read_json(path).get("chat_template"):
                return cls(path, _default(path, template))
        if template := tokenizer_config.get("chat_template"):
            path = folder / "tokenizer_config.json"
            return cls(path, _default(path, template))
        return None

    def render(self, prompt: str) -> str:
        """Return the conversation with a prompt."""
        rendered = self._render(prompt)
        if prompt not in rendered:
            raise UserError(
                f"the chat template renders {rendered!r:.80}, without the prompt {prompt!r:.40}",
                "a template of a conversation, or model.roles pro or base",
                at=self.path,
            )
        return rendered

    def _render(self, prompt: str) -> str:
        content = _parts(prompt) if self._in_parts else prompt
        try:
            return str(
                self._renderer.apply_chat_template(
                    [{"role": "user", "content": content}],
                    add_generation_prompt=True,
                    tokenize=False,
                )
            )
        except Exception as error:  # a template is a program
            raise UserError(
                f"the chat template fails: {type(error).__name__}: {error}",
                "a template of a conversation, or model.roles pro or base",
                at=self.path,
            ) from error


_PROBE = "lit dola probe"
_PART = "[{{'type': 'text', 'text': '{}'}}]"
"""Output of Jinja for :func:`_parts` in place of a text."""


def _parts(prompt: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": prompt}]


def _default(path: Path, template: Any) -> str:
    """Return the template of a key that holds one, or several by name."""
    if isinstance(template, list):
        named = {part.get("name"): part for part in template if isinstance(part, dict)}
        template = named.get("default", {}).get("template")
    if not isinstance(template, str):
        raise UserError(f"chat_template is {template!r:.80}", "a text", at=path)
    return template


def _own_name(folder: Path, name: str | None) -> str:
    """Return the last part of a checkpoint's name; in the hub's cache, that of the repository."""
    resolved = folder.resolve()
    if resolved.parent.name == "snapshots":
        return resolved.parent.parent.name.rpartition("--")[2]
    given = Path(name).name if name else folder.name
    return resolved.name if _JANUS_1_3B.search(resolved.name) else given or resolved.name


def _load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer, without the truncation and padding that its last user may have stored."""
    if not path.is_file():
        raise UserError("not found", "the tokenizer of a Janus checkpoint", at=path)
    refuse_pointer(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise UserError(f"not a tokenizer of the tokenizers library: {error}", at=path) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
