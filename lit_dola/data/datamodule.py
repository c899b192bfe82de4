"""The LightningDataModule of ``predict``: reads prompts, and plans the images to make of them."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from logging import getLogger
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from lit_dola.data.base import RequestDataModule
from lit_dola.data.entry_file import no_garbage_collection
from lit_dola.data.plan import RunPlan
from lit_dola.data.prompt_file import check_prompts, names_of_settings, own_settings, read_prompts
from lit_dola.data.requests import (
    EncodedPrompt,
    Failure,
    ImageRequests,
    NegativePrompt,
    OnError,
    Prompt,
)
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


class PromptDataModule(RequestDataModule):
    """Reads prompts and batches the images to make of them.

    Args:
        prompt_json: Prompt file: JSON (a list of strings, a list of objects with ``prompt``,
            ``text`` or ``caption``, an object id -> prompt, an object with the list ``prompts`` or
            COCO's ``annotations``), JSON Lines (``.jsonl``), plain text with one prompt per line
            (``.txt``), a table with a head (``.csv``, ``.tsv``), Parquet, a folder of text files
            with one prompt per file, or a folder of such lists.
        model_path: Checkpoint whose tokenizer encodes the prompts and whose context limits them.
        roles: Role names of the conversation template.
        parallel_size: Images per prompt.
        images_per_batch: Images per batch; auto: as many as the model's memory allows.
        negative_prompt: As the setting ``model.negative_prompt``.
        prompt_key: Key, or column, that holds the prompts; null: prompt, text or caption.
        use_entry_settings: Whether ``seed`` and ``negative_prompt`` of an entry hold for its
            images, in place of those of the model; otherwise they are only kept as metadata.
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
        negative_prompt: str | None = None,
        prompt_key: str | None = None,
        use_entry_settings: bool = False,
        prompts: dict[int, str] | list[str] | str | None = None,
        images: list[NonNegativeInt] | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(model_path, images_per_batch, on_error)
        named = self.prompts_name if prompts is not None else prompt_json
        self.prompt_json = given_path("data.prompt_json", named)
        self.prompt_key = prompt_key
        self.use_entry_settings = use_entry_settings
        self.negative_prompt = negative_prompt
        self.prompts = prompts
        self.images = range(parallel_size) if images is None else [*dict.fromkeys(images)]
        if not self.images:
            raise UserError("data.images: empty; expected indices of images, from 0, or null")
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
        prompts: list[EncodedPrompt] = []
        notes: list[str] = []
        try:
            common = self._encode_negative(self.negative_prompt)
        except UserError as error:
            raise UserError(f"model.negative_prompt: {error}") from error
        with no_garbage_collection():
            for prompt in self.read_prompts(skipped, notes):
                try:
                    prompts.append(self._encode(prompt, common))
                except UserError as error:
                    reason = f"entry {prompt.prompt_index}: {error}"
                    if skipped is None:
                        raise UserError(f"{self.prompt_json}: {reason}") from error
                    skipped.append(Failure(prompt.prompt_index, None, prompt.text, reason))
        if self.is_first:
            for note in [*notes, *self._unused(prompts)]:
                _log.warning(note)
        # Prompts of similar length share a batch, which then attends to fewer slots.
        prompts.sort(key=lambda encoded: len(encoded.input_ids))
        self.plan = RunPlan(
            self.prompt_json,
            self.on_error,
            self.checkpoint,
            self.encoder,
            ImageRequests(prompts, self.images, self.seeds),
            failures,
            batch_size=None if self.batch_size == "auto" else self.batch_size,
            per_entry=len(self.images),
        )

    @cached_property
    def _context(self) -> tuple[int, int]:
        """Token ids of the model's context, and of an image."""
        return self.checkpoint.context_length, self.checkpoint.num_image_tokens

    def _encode(self, prompt: Prompt, negative: NegativePrompt | None) -> EncodedPrompt:
        """Encode a prompt, with its own settings if they are to be used."""
        seed = None
        input_ids = self._encode_text("prompt", prompt.text)
        if self.use_entry_settings:
            own = own_settings(prompt.metadata)
            seed = own.seed
            negative = self._encode_negative(own.negative_prompt) or negative
        return EncodedPrompt(prompt, input_ids, seed, negative)

    def _encode_negative(self, text: str | None) -> NegativePrompt | None:
        if text is None:
            return None
        if not text.strip():
            raise UserError("negative_prompt is empty; expected a text")
        return NegativePrompt(text, self._encode_text("negative_prompt", text))

    def _encode_text(self, name: str, text: str) -> list[int]:
        """Return the token ids of a text.

        Raises:
            UserError: If they do not fit into the model's context.
        """
        input_ids = self.encoder.encode(text)
        context, image = self._context
        if len(input_ids) > context - image:
            raise UserError(
                f"{name} has {len(input_ids)} tokens; expected at most {context - image} (the"
                f" model's context of {context} minus its {image} image tokens)"
            )
        return input_ids

    def _unused(self, prompts: list[EncodedPrompt]) -> Iterator[str]:
        """Say once that settings of entries are not used."""
        if self.use_entry_settings:
            return
        names = {name for encoded in prompts for name in names_of_settings(encoded.prompt.metadata)}
        if names:
            yield (
                f"{self.prompt_json}: entries have {' and '.join(sorted(names))}, kept as metadata"
                " only; data.use_entry_settings true uses them"
            )

    def read_prompts(
        self, skipped: list[Failure] | None, notes: list[str] | None = None
    ) -> list[Prompt]:
        """Read the prompts; bad entries go to ``skipped``, or are an error if it is None.

        Args:
            skipped: Receives bad entries.
            notes: Receives what was not read.

        Raises:
            UserError: If the file cannot be read, or an entry is not a prompt.
        """
        if self.prompts is None:
            return read_prompts(self.prompt_json, skipped, self.prompt_key, notes)
        given = self.prompts
        if isinstance(given, str):
            if _BRACKETS.fullmatch(given.strip()):
                raise UserError(
                    f"{self.prompt_json}: {given!r:.60}; expected one text, a list of texts, or"
                    " texts by index; a text in brackets only in a list"
                )
            given = [given]
        try:
            if not isinstance(given, dict):
                return check_prompts(given)
            found = check_prompts([*given.values()])
            if (least := min(given)) < 0:
                raise UserError(f"index {least}; expected 0 or more")
        except UserError as error:
            raise UserError(f"{self.prompt_json}: {error}") from error
        return [prompt._replace(prompt_index=index) for prompt, index in zip(found, given)]
