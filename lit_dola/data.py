"""Prompt files, and the images that are asked for with them."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lit_dola.checkpoint import load_config
from lit_dola.errors import UserError
from lit_dola.janus import find_checkpoint
from lit_dola.prompt import PromptEncoder, Roles

PROMPT_KEYS = ("prompt", "text", "caption")
"""Keys that may hold the prompt of an object, the first one found counts."""


class Prompt(NamedTuple):
    """One entry of a prompt file."""

    prompt_index: int
    """Place in the file, from 0."""
    text: str
    metadata: dict[str, Any]
    """Whatever else the entry holds, and its ``id`` where the file gives one."""


class ImageRequest(NamedTuple):
    """One image to make."""

    prompt: Prompt
    image_index: int
    """Number among the images of its prompt, from 0."""
    input_ids: list[int]
    """Token ids of the prompt, from BOS to begin of image."""


class PromptDataModule(LightningDataModule):
    """Reads prompts and deals out the images to make, batch by batch.

    Args:
        prompt_json: Prompt file: JSON (a list of strings, a list of objects with ``prompt``,
            ``text`` or ``caption``, or an object id -> prompt), JSON Lines (``.jsonl``), or plain
            text, a prompt a line (``.txt``).
        model_path: Checkpoint whose tokenizer and context length the prompts are held against.
        roles: Role names of the conversation template.
        parallel_size: Images a prompt.
        images_per_batch: Images a batch; auto asks the model.
    """

    def __init__(
        self,
        prompt_json: str = "prompt.json",
        model_path: str = "deepseek-ai/Janus-Pro-7B",
        roles: Roles = "auto",
        parallel_size: PositiveInt = 8,
        images_per_batch: PositiveInt | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.prompt_json = Path(prompt_json).expanduser()
        self.model_path = model_path
        self.roles = roles
        self.parallel_size = parallel_size
        self.images_per_batch = images_per_batch
        self.requests: list[ImageRequest] = []

    def prepare_data(self) -> None:
        """Fetch the checkpoint, where it is not on this machine yet, once a node."""
        find_checkpoint(self.model_path)

    def setup(self, stage: str) -> None:
        """Read and encode every prompt.

        Raises:
            UserError: If the prompt file is not as it should be, or a prompt is too long.
        """
        prompts = read_prompts(self.prompt_json)
        checkpoint = find_checkpoint(self.model_path)
        encoder = PromptEncoder(checkpoint, self.roles, name=self.model_path)
        config, _ = load_config(checkpoint)
        context = config.text_config.max_position_embeddings
        longest = context - config.vision_config.num_image_tokens
        self.requests = []
        for prompt in prompts:
            input_ids = encoder.encode(prompt.text)
            if len(input_ids) > longest:
                raise UserError(
                    f"{self.prompt_json}: entry {prompt.prompt_index}: prompt has"
                    f" {len(input_ids)} tokens; expected at most {longest} (the model's context of"
                    f" {context} less its {config.vision_config.num_image_tokens} image tokens)"
                )
            self.requests += [
                ImageRequest(prompt, image_index, input_ids)
                for image_index in range(self.parallel_size)
            ]
        # Prompts of like length share a batch, for the sake of less padding.
        self.requests.sort(key=lambda request: len(request.input_ids))

    def predict_dataloader(self) -> DataLoader[list[ImageRequest]]:
        """Batches of at most ``images_per_batch`` requests."""
        if self.images_per_batch == "auto":
            assert self.trainer is not None
            fitting = cast(Any, self.trainer.lightning_module).images_that_fit(self.requests)
            batch_size = min(fitting, math.ceil(len(self.requests) / self.trainer.world_size))
        else:
            batch_size = self.images_per_batch
        dataset = cast(Dataset[list[ImageRequest]], self.requests)
        return DataLoader(dataset, batch_size=batch_size, collate_fn=list)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Requests stay on the host; the token loop moves what it needs."""
        return batch


def read_prompts(path: Path) -> list[Prompt]:
    """Read a prompt file.

    Args:
        path: A file in one of the forms that :class:`PromptDataModule` names, UTF-8 with or
            without a byte order mark.

    Raises:
        UserError: If the file cannot be read, or an entry is not a prompt; the message names the
            file and the entry or line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise UserError(f"{path}: empty; expected at least one prompt")

    if path.suffix == ".txt":
        entries: Iterable[tuple[str, Any]] = _lines(text)
    elif path.suffix in (".jsonl", ".ndjson"):
        entries = ((where, _parse_json(path, line, where)) for where, line in _lines(text))
    else:
        entries = _json_entries(path, _parse_json(path, text))
    prompts: list[Prompt] = []
    place_of_id: dict[Any, str] = {}
    for index, (where, entry) in enumerate(entries):
        prompt = _prompt(f"{path}: {where}", index, entry)
        if "id" in prompt.metadata:
            entry_id = json.dumps(prompt.metadata["id"])
            if entry_id in place_of_id:
                raise UserError(
                    f"{path}: {where}: id {entry_id} is also that of {place_of_id[entry_id]};"
                    " expected each once"
                )
            place_of_id[entry_id] = where
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{path}: empty; expected at least one prompt")
    return prompts


def _lines(text: str) -> Iterable[tuple[str, str]]:
    """Lines that are not blank, each with its place."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", line


def _json_entries(path: Path, document: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(document, list):
        return ((f"entry {index}", entry) for index, entry in enumerate(document))
    if isinstance(document, _Pairs):
        return (
            (f"entry {index}", {"id": key, "prompt": value})
            for index, (key, value) in enumerate(document.pairs)
        )
    raise UserError(f"{path}: found {_kind(document)}; expected a list or an object of prompts")


class _Pairs(dict[str, Any]):
    """A JSON object that still knows the keys it was given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _parse_json(path: Path, text: str, where: str | None = None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        place = where or f"line {error.lineno}"
        raise UserError(f"{path}: {place}, column {error.colno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise UserError(f"{path}: {where or 'line 1'}: not JSON: nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{path}: {where or 'line 1'}: not JSON: {error}") from error


def _prompt(where: str, index: int, entry: Any) -> Prompt:
    if isinstance(entry, str):
        text, metadata = entry, {}
    elif isinstance(entry, dict):
        key = next((key for key in PROMPT_KEYS if key in entry), None)
        if key is None:
            raise UserError(
                f"{where}: no prompt; expected one of the keys {', '.join(PROMPT_KEYS)}"
            )
        text, metadata = entry[key], {name: entry[name] for name in entry if name != key}
    else:
        raise UserError(f"{where}: found {_kind(entry)}; expected a string or an object")
    if not isinstance(text, str):
        raise UserError(f"{where}: prompt is {_kind(text)}; expected a string")
    if not text.strip():
        raise UserError(f"{where}: prompt is empty; expected a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: prompt has half a surrogate pair at character {error.start};"
            " expected valid Unicode"
        ) from error
    return Prompt(index, text.strip(), metadata)


def _kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
