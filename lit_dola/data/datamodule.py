"""The LightningDataModule of ``predict``: reads prompts, and plans the images to make of them."""

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from logging import getLogger
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from lit_dola.data.base import RequestDataModule
from lit_dola.data.plan import RunPlan
from lit_dola.data.prompt_file import check_prompts, read_prompts
from lit_dola.data.requests import Failure, ImageRequests, OnError, Prompt
from lit_dola.errors import UserError, given_path
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.tokenizer import PromptEncoder, Roles

_log = getLogger(__name__)
_BRACKETS = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
"""What was probably meant as a list or as an object, and is none."""


def encoder_of(checkpoint: Checkpoint, roles: Roles, note: bool = True) -> PromptEncoder:
    """Return the tokenizer of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        roles: Role names of the conversation template.
        note: Whether to log which roles ``auto`` has guessed.

    Raises:
        UserError: As :class:`lit_dola.janus.tokenizer.PromptEncoder`.
    """
    vocab_size = int(checkpoint.config.text_config.vocab_size)
    encoder = PromptEncoder(checkpoint.folder, roles, checkpoint.name, vocab_size)
    if note:
        note_roles(encoder)
    return encoder


def note_roles(encoder: PromptEncoder) -> None:
    """Log which roles ``auto`` has guessed from the checkpoint's name, if it has."""
    if encoder.chosen_by:
        _log.warning(
            "model.roles: %s, chosen by the name %s; set pro or base if that is wrong",
            encoder.roles,
            encoder.chosen_by,
        )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause it while many objects are made and few are freed, which it would look for in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class PromptDataModule(RequestDataModule):
    """Reads prompts and batches the images to make of them.

    Args:
        prompt_json: Prompt file: JSON (a list of strings, a list of objects with ``prompt``,
            ``text`` or ``caption``, or an object id -> prompt), JSON Lines (``.jsonl``), plain text
            with one prompt per line (``.txt``), or a folder of text files with one prompt per file.
        model_path: Checkpoint whose tokenizer encodes the prompts and whose context limits them.
        roles: Role names of the conversation template.
        parallel_size: Images per prompt.
        images_per_batch: Images per batch; auto: as many as the model's memory allows.
        prompts: Prompts in place of a file: one text, a list, or texts by the index that their
            noise depends on, as ``{17: a red circle}``.
        images: Which images of each prompt to make, by their index; null: the first
            ``parallel_size``.
        on_error: What to do with a bad entry of the prompt file: stop before anything is generated,
            or skip it, list it in ``errors.jsonl`` and continue with the others. The same holds for
            an image whose logits are not finite, which only shows while it is made.
    """

    prompts_name = "data.prompts"
    """What messages call the prompts that are given in place of a file."""

    def __init__(
        self,
        prompt_json: str = "prompt.json",
        model_path: str = "deepseek-ai/Janus-Pro-7B",
        roles: Roles = "auto",
        parallel_size: PositiveInt = 8,
        images_per_batch: PositiveInt | Literal["auto"] = "auto",
        prompts: dict[int, str] | list[str] | str | None = None,
        images: list[NonNegativeInt] | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(model_path, images_per_batch, on_error)
        named = self.prompts_name if prompts is not None else prompt_json
        self.prompt_json = given_path("data.prompt_json", named)
        self.prompts = prompts
        self.images = range(parallel_size) if images is None else [*dict.fromkeys(images)]
        self.roles = roles
        self.parallel_size = parallel_size
        self.seeds: Sequence[int] | None = None
        """Seed of each image, by prompt, then by index; None: that of the model for all."""

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The checkpoint's tokenizer, read once."""
        return encoder_of(self.checkpoint, self.roles, note=self.is_first)

    def setup(self, stage: str) -> None:
        """Read and encode every prompt.

        Raises:
            UserError: If the prompt file is unusable, or a prompt is too long.
        """
        failures: list[Failure] = []
        skipped = failures if self.on_error == "skip" else None
        prompts: list[tuple[Prompt, list[int]]] = []
        with _no_garbage_collection():
            for prompt in self.read_prompts(skipped):
                input_ids = self.encoder.encode(prompt.text)
                if reason := self._too_long(prompt, len(input_ids)):
                    if skipped is None:
                        raise UserError(f"{self.prompt_json}: {reason}")
                    skipped.append(Failure(prompt.prompt_index, None, prompt.text, reason))
                    continue
                prompts.append((prompt, input_ids))
        # Prompts of similar length share a batch, which then attends to fewer slots.
        prompts.sort(key=lambda encoded: len(encoded[1]))
        self.plan = RunPlan(
            self.prompt_json,
            self.on_error,
            self.checkpoint,
            self.encoder,
            ImageRequests(prompts, self.images, self.seeds),
            failures,
            batch_size=None if self.batch_size == "auto" else self.batch_size,
        )

    @cached_property
    def _context(self) -> tuple[int, int]:
        """Token ids of the model's context, and of an image."""
        return self.checkpoint.context_length, self.checkpoint.num_image_tokens

    def _too_long(self, prompt: Prompt, length: int) -> str | None:
        """Say why a prompt of so many token ids does not fit into the model's context."""
        context, image = self._context
        if length <= context - image:
            return None
        return (
            f"entry {prompt.prompt_index}: prompt has {length} tokens; expected at most"
            f" {context - image} (the model's context of {context} minus its {image} image tokens)"
        )

    def read_prompts(self, skipped: list[Failure] | None) -> list[Prompt]:
        """Read the prompts; bad entries go to ``skipped``, or are an error if it is None.

        Raises:
            UserError: If the file cannot be read, or an entry is not a prompt.
        """
        if self.prompts is None:
            return read_prompts(self.prompt_json, skipped)
        given = [self.prompts] if isinstance(self.prompts, str) else self.prompts
        if isinstance(self.prompts, str) and _BRACKETS.fullmatch(self.prompts.strip()):
            raise UserError(
                f"{self.prompt_json}: {self.prompts!r:.60}; expected one text, a list of texts, or"
                " texts by index; a text in brackets only in a list"
            )
        try:
            if not isinstance(given, dict):
                return check_prompts(given)
            found = check_prompts([*given.values()])
            if (least := min(given)) < 0:
                raise UserError(f"index {least}; expected 0 or more")
        except UserError as error:
            raise UserError(f"{self.prompt_json}: {error}") from error
        return [prompt._replace(prompt_index=index) for prompt, index in zip(found, given)]
