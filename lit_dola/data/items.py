"""The LightningDataModule of ``rank``: pictures with labels, or the images of a run."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from lit_dola.data.base import RequestDataModule
from lit_dola.data.item_file import read_items, read_run
from lit_dola.data.plan import RunPlan
from lit_dola.data.questions import question_encoder
from lit_dola.data.requests import Failure, OnError, RankRequest
from lit_dola.errors import UserError, given_path
from lit_dola.janus.checkpoint import ModelFolder
from lit_dola.janus.question import SYSTEM_PROMPT, QuestionEncoder
from lit_dola.janus.siglip import SiglipCheckpoint
from lit_dola.janus.tokenizer import Roles

RankScorer = Literal["siglip", "likelihood", "yes_no"]


class ItemDataModule(RequestDataModule):
    """Reads what is to be ranked.

    Args:
        item_json: Item file: JSON (a list of objects) or JSON Lines, whatever its suffix. Each
            entry has ``image``, a path, and ``labels``, a list of texts; everything else is kept.
        run: Folder of a run of ``predict``, in place of an item file: the images of each prompt are
            ranked by their similarity to it.
        labels: Labels of the entries that have none of their own.
        image_dir: What paths of pictures are relative to; null: the item file's folder.
        model_path: Checkpoint of the scorer.
        scorer: What scores; see ``model.scorer``.
        roles: Role names of the conversation template, for a Janus.
        system_prompt: What the conversation starts with, for a Janus.
        items_per_batch: Items between two looks at signals and the clock.
        on_error: What to do with a bad entry or a broken picture: stop, or skip it, list it in
            ``errors.jsonl`` and continue with the others.
    """

    def __init__(
        self,
        item_json: str = "items.json",
        run: str | None = None,
        labels: list[str] | None = None,
        image_dir: str | None = None,
        model_path: str = "checkpoints/shapes-siglip",
        scorer: RankScorer = "siglip",
        roles: Roles = "auto",
        system_prompt: str = SYSTEM_PROMPT,
        items_per_batch: PositiveInt = 16,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(model_path, items_per_batch, on_error)
        self.item_json = given_path("data.item_json", item_json)
        self.run = None if run is None else given_path("data.run", run)
        self.image_dir = None if image_dir is None else given_path("data.image_dir", image_dir)
        self.labels = labels
        self.scorer = scorer
        self.roles = roles
        self.system_prompt = system_prompt

    @cached_property
    def model(self) -> ModelFolder:
        """The model of the scorer."""
        if self.scorer == "siglip":
            return SiglipCheckpoint.open(self.model_path)
        return self.checkpoint

    @cached_property
    def encoder(self) -> QuestionEncoder | None:
        """The tokenizer of a Janus, read once."""
        if self.scorer == "siglip":
            return None
        return question_encoder(self.checkpoint, self.roles, self.system_prompt, self.is_first)

    def setup(self, stage: str) -> None:
        """Read what is to be ranked, and look at every picture's header.

        Raises:
            UserError: If a file is unusable, or a picture is missing.
        """
        failures: list[Failure] = []
        skipped = failures if self.on_error == "skip" else None
        requests = self.read_requests(skipped)
        self.plan = RunPlan(
            self.file, self.on_error, self.model, self.encoder, requests, failures,
            batch_size=int(self.batch_size),
        )  # fmt: skip

    @property
    def file(self) -> Path:
        """What the items are read from."""
        return self.item_json if self.run is None else self.run / "metadata.jsonl"

    def read_requests(self, skipped: list[Failure] | None) -> list[RankRequest]:
        """Read the items; bad entries go to ``skipped``, or are an error if it is None."""
        if self.run is None:
            items = read_items(self.file, self.image_dir, self.labels, skipped)
            return [RankRequest(*item) for item in items]
        if not self.file.is_file():
            raise UserError(
                f"data.run: {self.file}: not found; expected the folder of a run that has ended"
            )
        return [RankRequest(*item, "pictures") for item in read_run(self.file, skipped)]
