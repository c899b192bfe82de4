"""Request limits of the server and the playground."""

from dataclasses import dataclass
from typing import Any

from lit_dola.data.prompt_file import prompt_maker
from lit_dola.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Request limits."""

    max_images: int
    """Images per request."""
    max_prompt_length: int
    """Characters of a prompt."""
    max_queue: int
    """Requests that wait or run."""

    @property
    def images(self) -> str:
        """Allowed numbers of images, for messages."""
        return f"an integer, 1 to {self.max_images}"

    def check_images(self, name: str, count: Any) -> int:
        """Return a number of images."""
        if type(count) is not int or not 1 <= count <= self.max_images:
            raise UserError(f"{count!r:.60}", self.images, setting=name)
        return count

    def check_prompt(self, name: str, prompt: Any) -> str:
        """Return a prompt."""
        if not isinstance(prompt, str):
            raise UserError(f"{prompt!r:.60}", "a string", setting=name)
        prompt_maker()(0, prompt)
        if len(prompt) > self.max_prompt_length:
            raise UserError(
                f"{len(prompt):,} characters", f"at most {self.max_prompt_length:,}", setting=name
            )
        return prompt
