"""Log biases of texts, read from a file and added to the scores of tokens."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from lit_dola.errors import UserError, within
from lit_dola.janus.files import read_json
from lit_dola.settings.texts import check_unicode


@dataclass(frozen=True)
class LogitBias:
    """Log biases of texts."""

    path: Path
    biases: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> "LogitBias":
        """Read a JSON file of texts and their log biases.

        Example:
            >>> Path("prior.json").write_text('{" yes": 0.5}')
            >>> prior = LogitBias.read(Path("prior.json"))
        """
        if not path.is_file():
            raise UserError(
                f"{path}: not found", "a JSON file, text -> bias", setting="model.prior"
            )
        biases = read_json(path)
        for text, bias in biases.items():
            with within(path):
                check_unicode(f"{text!a:.40}", text)
            if type(bias) not in (int, float) or not math.isfinite(bias):
                raise UserError(f"{text!r:.40} has {bias!r:.40}", "a finite number", at=path)
        return cls(path, {text: float(bias) for text, bias in biases.items()})

    @property
    def digest(self) -> str:
        """Name of the file and digest of its content, for records."""
        content = json.dumps(sorted(self.biases.items())).encode()
        return f"{self.path.name} sha256:{sha256(content).hexdigest()[:16]}"

    def token_biases(self, encode: Callable[[str], Sequence[int]], vocab_size: int) -> Tensor:
        """Return the bias of every token: a text of several tokens biases its first one.

        Returns:
            Float32 ``(vocab_size,)``, 0 for all other tokens.
        """
        biases = torch.zeros(vocab_size)
        texts: dict[int, str] = {}
        for text, bias in self.biases.items():
            ids = encode(text)
            if not ids:
                raise UserError(f"{text!r} has no token", "a text", at=self.path)
            if ids[0] in texts:
                raise UserError(
                    f"{texts[ids[0]]!r:.40} and {text!r:.40} start with the same token",
                    "texts that differ in their first token",
                    at=self.path,
                )
            texts[ids[0]] = text
            biases[ids[0]] = bias
        return biases
