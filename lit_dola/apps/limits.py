"""What a caller may ask for."""

from dataclasses import dataclass
from typing import Any

from lit_dola.data.prompt_file import prompt_maker
from lit_dola.errors import UserError


@dataclass(frozen=True)
class Limits:
    """How much a caller may ask for."""

    max_images: int
    """Images per request."""
    max_prompt_length: int
    """Characters of a prompt."""
    max_queue: int
    """Requests that wait or run."""

    def check_images(self, name: str, count: Any) -> int:
        """Return a number of images.

        Raises:
            UserError: If it is none, or too large.
        """
        if type(count) is not int or not 1 <= count <= self.max_images:
            raise UserError(f"{name}: {count!r:.60}; expected an integer, 1 to {self.max_images}")
        return count

    def check_prompt(self, name: str, prompt: Any) -> str:
        """Return a prompt.

        Raises:
            UserError: If it is none, or too long.
        """
        if not isinstance(prompt, str):
            raise UserError(f"{name}: {prompt!r:.60}; expected a string")
        try:
            prompt_maker()(0, prompt)
        except UserError as error:
            said = str(error)
            raise UserError(said if said.startswith(name) else f"{name}: {said}") from error
        if len(prompt) > self.max_prompt_length:
            raise UserError(
                f"{name}: {len(prompt):,} characters; expected at most {self.max_prompt_length:,}"
            )
        return prompt
