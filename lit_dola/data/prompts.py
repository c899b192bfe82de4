"""The data module of ``predict``: reads prompts, and plans the images to generate for them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from logging import getLogger

from jsonargparse.typing import NonNegativeInt

from lit_dola.collector import no_garbage_collection
from lit_dola.data.base import BadEntries, RequestDataModule
from lit_dola.data.batch_file import without_effect
from lit_dola.data.prompt_file import check_prompts, names_of_settings, own_settings, read_prompts
from lit_dola.data.requests import (
    EncodedPrompt,
    Entry,
    Failure,
    ImageRequests,
    NegativePrompt,
    OnError,
)
from lit_dola.errors import UserError, about_setting, within
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.tokenizer import PromptEncoder, Roles
from lit_dola.settings.checks import given_path
from lit_dola.settings.texts import check_unicode

_log = getLogger(__name__)
_BRACKETS = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
"""Text that was probably meant as a list or as an object."""


def encoder_of(checkpoint: Checkpoint, roles: Roles, note: bool = True) -> PromptEncoder:
    """Return the tokenizer of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        roles: Role names of the conversation template.
        note: Log which roles ``auto`` has guessed.
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
    """Reads prompts and batches the images to generate for them.

    Args:
        prompt_json: Prompt file: JSON (a list of strings, a list of objects with ``prompt``,
            ``text`` or ``caption``, an object id -> prompt, an object with the list ``prompts`` or
            COCO's ``annotations``), JSON Lines (``.jsonl``), plain text with one prompt per line
            (``.txt``), a table with a head (``.csv``, ``.tsv``), Parquet, requests of OpenAI's
            batch interface (JSON Lines with ``custom_id`` and ``body``), a folder of text files
            with one prompt per file, or a folder of such lists.
        prompt_key: Key, or column, that holds the prompts; null: prompt, text or caption.
        use_entry_settings: Use ``seed`` and ``negative_prompt`` of an entry for its images, in
            place of those of the model; otherwise they are only kept as metadata.
        prompts: Prompts in place of a file: one text, a list, or a map from prompt index to text,
            e.g. ``{17: a red circle}``; the index keys the noise.
        prompt_range: ``[first, end]``: only the prompts with these indices, ``end`` not included,
            e.g. those of one job of an array; null: all.
        images: Indices of the images to generate per prompt; null: the first ``parallel_size``.
        on_error: Stop at a bad entry of the prompt file before anything is generated, or skip it,
            list it in ``errors.jsonl`` and continue with the others. The same holds for an image
            whose logits are not finite, which only shows during generation.
    """

    prompts_name = "data.prompts"
    """Name of the setting ``prompts`` in messages."""
    texts = ("prompts",)

    def __init__(
        self,
        prompt_json: str = "prompt.json",
        prompt_key: str | None = None,
        use_entry_settings: bool = False,
        prompts: dict[int, str] | list[str] | str | None = None,
        prompt_range: tuple[NonNegativeInt, NonNegativeInt] | None = None,
        images: list[NonNegativeInt] | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__("images_per_batch", on_error)
        named = self.prompts_name if prompts is not None else prompt_json
        self.prompt_json = given_path("data.prompt_json", named)
        self.prompt_key = prompt_key
        self.use_entry_settings = use_entry_settings
        self.prompts = prompts
        self.prompt_range = prompt_range
        self.only_images = None if images is None else [*dict.fromkeys(images)]
        if self.only_images == []:
            raise UserError("empty", "indices of images, from 0, or null", setting="data.images")
        self.seeds: Sequence[int] | None = None
        """Seed of each image, by prompt, then by index; None: that of the model for all."""

    @property
    def images(self) -> Sequence[int]:
        """Indices of the images of each prompt."""
        own = self.only_images
        return range(self.settings["parallel_size"]) if own is None else own

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The checkpoint's tokenizer, read once."""
        return encoder_of(self.checkpoint, self.settings["roles"], note=self.is_first)

    def setup(self, stage: str) -> None:
        """Read and encode every prompt."""
        bad = BadEntries(self.on_error)
        prompts: list[EncodedPrompt] = []
        notes: list[str] = []
        with about_setting("model.negative_prompt"):
            common = self._encode_negative(self.settings["negative_prompt"])
        with no_garbage_collection():
            for prompt in self.read_prompts(bad.skipped, notes):
                try:
                    prompts.append(self._encode(prompt, common))
                except UserError as error:
                    bad.add(prompt, error, self.prompt_json)
        if self.is_first:
            for note in [*notes, *self._unused(prompts)]:
                _log.warning(note)
        # Prompts of similar length share a batch, which then attends to fewer slots.
        prompts.sort(key=lambda encoded: len(encoded.input_ids))
        requests = ImageRequests(prompts, self.images, self.seeds)
        self.plan = self.make_plan(
            self.prompt_json,
            requests,
            tokenizer=self.encoder,
            failures=bad.found,
            entry_starts=requests.starts,
        )

    @cached_property
    def _context(self) -> tuple[int, int]:
        """Token ids of the model's context, and of an image."""
        return self.checkpoint.context_length, self.checkpoint.num_image_tokens

    def _encode(self, prompt: Entry, negative: NegativePrompt | None) -> EncodedPrompt:
        """Encode a prompt, with its own settings if they are to be used."""
        seed = images = None
        input_ids = self._encode_text("prompt", prompt.text)
        if self.use_entry_settings or prompt.count is not None:
            own = own_settings(prompt.metadata)
            seed = own.seed
            negative = self._encode_negative(own.negative_prompt) or negative
        if prompt.count is not None:
            only = range(prompt.count) if self.only_images is None else self.only_images
            images = [image for image in only if image < prompt.count]
        return EncodedPrompt(prompt, input_ids, seed, negative, images)

    def _encode_negative(self, text: str | None) -> NegativePrompt | None:
        if text is None:
            return None
        if not text.strip():
            raise UserError("negative_prompt is empty", "a text")
        check_unicode("negative_prompt", text)
        return NegativePrompt(text, self._encode_text("negative_prompt", text))

    def _encode_text(self, name: str, text: str) -> list[int]:
        """Return the token ids of a text, if they fit into the model's context."""
        input_ids = self.encoder.encode(text)
        context, image = self._context
        if len(input_ids) > context - image:
            raise UserError(
                f"{name} has {len(input_ids)} tokens",
                f"at most {context - image} (the model's context of {context} minus its {image}"
                " image tokens)",
            )
        return input_ids

    def _unused(self, prompts: list[EncodedPrompt]) -> Iterator[str]:
        """Yield notes about settings of entries that are not used."""
        entries = [encoded.entry for encoded in prompts]
        asked = {name for it in entries if it.count for name in without_effect(it.metadata)}
        if asked:
            yield f"{self.prompt_json}: requests have {_listed(asked)}, kept as metadata only"
        if self.use_entry_settings:
            return
        names = {name for it in entries if not it.count for name in names_of_settings(it.metadata)}
        if names:
            yield (
                f"{self.prompt_json}: entries have {_listed(names)}, kept as metadata only;"
                " data.use_entry_settings true uses them"
            )

    def read_prompts(
        self, skipped: list[Failure] | None, notes: list[str] | None = None
    ) -> list[Entry]:
        """Read the prompts; bad entries go to ``skipped``, or are an error if it is None.

        Args:
            skipped: Receives bad entries.
            notes: Receives notes about files that were not read.

        Raises:
            UserError: If the file cannot be read, or an entry is not a prompt.
        """
        if self.prompts is None:
            found = read_prompts(self.prompt_json, skipped, self.prompt_key, notes)
            return self._in_range(found, skipped)
        given = self.prompts
        with within(self.prompt_json):
            if isinstance(given, str):
                if _BRACKETS.fullmatch(given.strip()):
                    raise UserError(
                        f"{given!r:.60}",
                        "one text, a list of texts, or texts by index; a text in brackets only in"
                        " a list",
                    )
                given = [given]
            if not isinstance(given, dict):
                return self._in_range(check_prompts(given))
            found = check_prompts([*given.values()])
            if (least := min(given)) < 0:
                raise UserError(f"index {least}", "0 or more")
        numbered = [replace(prompt, index=index) for prompt, index in zip(found, given)]
        return self._in_range(numbered)

    def _in_range(self, prompts: list[Entry], skipped: list[Failure] | None = None) -> list[Entry]:
        """Return the prompts of the range, and leave the failures of the range in ``skipped``.

        Raises:
            UserError: If there is no prompt.
        """
        if self.prompt_range is None:
            return prompts
        own = range(*self.prompt_range)
        found = [prompt for prompt in prompts if prompt.index in own]
        if not found:
            raise UserError(
                f"no prompt in [{own.start}, {own.stop}]",
                f"a range of the indices 0 to {max(prompt.index for prompt in prompts)}",
                setting="data.prompt_range",
            )
        if skipped:
            skipped[:] = [failure for failure in skipped if failure.prompt_index in own]
        return found


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names))
