"""The data module of ``rank``: pictures with labels, or the images of a run."""

from functools import cached_property
from pathlib import Path

from jsonargparse.typing import PositiveInt

from lit_dola.data.base import BadEntries, RequestDataModule
from lit_dola.data.item_file import Item, read_items, read_run
from lit_dola.data.questions import question_encoder
from lit_dola.data.requests import Failure, OnError, RankRequest
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.question import QuestionEncoder
from lit_dola.settings.checks import given_path


class ItemDataModule(RequestDataModule):
    """Reads what is to be ranked.

    Args:
        item_json: Item file: JSON (a list of objects) or JSON Lines, whatever its suffix. Each
            entry has ``image``, a path, and ``labels``, a list of texts; everything else is kept.
        run: Folder of a run of ``predict``, in place of an item file: the images of each prompt are
            ranked by their similarity to it.
        labels: Labels of the entries that have none of their own.
        image_dir: Folder that paths of pictures are relative to; null: the item file's folder.
        items_per_batch: Items between two checks for signals and the time limit.
        on_error: Stop at a bad entry or a broken picture, or skip it, list it in ``errors.jsonl``
            and continue with the others.
    """

    def __init__(
        self,
        item_json: str = "items.json",
        run: str | None = None,
        labels: list[str] | None = None,
        image_dir: str | None = None,
        items_per_batch: PositiveInt = 16,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__("items_per_batch", on_error)
        self.batch_size = items_per_batch
        self.item_json = given_path("data.item_json", item_json)
        self.run = None if run is None else given_path("data.run", run)
        self.image_dir = None if image_dir is None else given_path("data.image_dir", image_dir)
        self.labels = labels

    @cached_property
    def encoder(self) -> QuestionEncoder | None:
        """The tokenizer of a Janus, read once; None for a SigLIP."""
        if not isinstance(self.model, Checkpoint):
            return None
        return question_encoder(self.model, self.settings, self.is_first)

    def setup(self, stage: str) -> None:
        """Read what is to be ranked, and check every picture's header."""
        bad = BadEntries(self.on_error)
        requests = self.read_requests(bad.skipped)
        self.plan = self.make_plan(
            self.file, requests, tokenizer=self.encoder, failures=bad.found, ranked_run=self.run
        )

    @property
    def file(self) -> Path:
        """The file of the items."""
        return self.item_json if self.run is None else self.run / "metadata.jsonl"

    def read_requests(self, skipped: list[Failure] | None) -> list[RankRequest]:
        """Read the items; bad entries go to ``skipped``, or are an error if it is None."""
        if self.run is None:
            return [*map(request_of, read_items(self.file, self.image_dir, self.labels, skipped))]
        if not self.file.is_file():
            raise UserError(
                f"{self.file}: not found", "the folder of a run that has ended", setting="data.run"
            )
        return [request_of(item, over_pictures=True) for item in read_run(self.file, skipped)]


def request_of(item: Item, over_pictures: bool = False) -> RankRequest:
    """Return the request to rank an item's labels, or its pictures for its only label."""
    return RankRequest(
        item.entry, item.pictures, item.names, item.labels,
        "pictures" if over_pictures else "labels",
    )  # fmt: skip
