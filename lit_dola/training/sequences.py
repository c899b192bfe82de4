"""The data module of ``lens``: sequences to train on, and others to measure on."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from jsonargparse.typing import OpenUnitInterval, PositiveInt
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lit_dola.data.prompts import encoder_of
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.lens import LensHead
from lit_dola.janus.tokenizer import PromptEncoder, Roles
from lit_dola.settings.checks import given_path
from lit_dola.training.sources import (
    LensSequence,
    Reader,
    answers_of_run,
    captioned_pictures,
    images_of_run,
)


class _Sequences(Dataset[LensSequence]):
    """Sequences that are read when they are needed."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers

    def __len__(self) -> int:
        return len(self.readers)

    def __getitem__(self, place: int) -> LensSequence:
        return self.readers[place]()


class LensDataModule(LightningDataModule):
    """Reads what lenses are trained on.

    Args:
        runs: Folders of runs of the same checkpoint: of predict with ``writer.save_tokens``, or of
            answer, if ``model.head`` is text.
        picture_json: Pictures with captions, in place of runs or in addition: JSON or JSON Lines,
            whatever its suffix, or a table. Each entry has ``image``, a path, and ``prompt``,
            ``text`` or ``caption``. The VQ encoder makes tokens of them.
        image_dir: Folder that paths of pictures are relative to; null: that of ``picture_json``.
        batch_size: Sequences per step and device.
        held_out: Share of the prompts, or of the pictures asked about, that is held out, to measure
            how well the lenses read.
    """

    def __init__(
        self,
        runs: list[str] | None = None,
        picture_json: str | None = None,
        image_dir: str | None = None,
        batch_size: PositiveInt = 8,
        held_out: OpenUnitInterval = 0.1,
    ) -> None:
        super().__init__()
        self.runs = [given_path("data.runs", run) for run in runs or ()]
        self.picture_json, self.image_dir = (
            None if path is None else given_path(f"data.{name}", path)
            for name, path in (("picture_json", picture_json), ("image_dir", image_dir))
        )
        self.batch_size = batch_size
        self.held_out = held_out
        if not self.runs and self.picture_json is None:
            raise UserError(
                "empty", "folders of runs, or data.picture_json", setting="data.runs",
                mentions=("data.picture_json",),
            )  # fmt: skip

    def prepare(self, checkpoint: Checkpoint, head: LensHead, roles: Roles) -> PromptEncoder:
        """Find the sequences of a checkpoint, and return its tokenizer.

        Raises:
            UserError: If there are too few, or they are of another checkpoint.
        """
        encoder = encoder_of(checkpoint, roles)
        groups: dict[str, list[Reader]] = {}
        for group, reader in self._sources(checkpoint, head, encoder, roles):
            groups.setdefault(group, []).append(reader)
        if len(groups) < 2:
            setting = "data.runs" if self.runs else "data.picture_json"
            raise UserError(f"sequences of {len(groups)} prompt(s)", "several", setting=setting)
        names = sorted(groups)
        kept = round(len(names) * self.held_out) or 1
        # Spread over the file, which may be sorted by what the prompts are about.
        out = {names[place * len(names) // kept] for place in range(kept)}
        self.train, self.validation = (
            _Sequences([it for name in groups if (name in out) is held for it in groups[name]])
            for held in (False, True)
        )
        return encoder

    def _sources(
        self, checkpoint: Checkpoint, head: LensHead, encoder: PromptEncoder, roles: Roles
    ) -> Iterator[tuple[str, Reader]]:
        """Yield all sequences, each with its group."""
        for run in self.runs:
            if head == "text":
                yield from answers_of_run(run, checkpoint, roles)
            else:
                yield from images_of_run(run, checkpoint, encoder)
        if self.picture_json is None:
            return
        if head == "text":
            raise UserError(
                "no answers", "data.runs of answer, for model.head text",
                setting="data.picture_json", mentions=("data.runs", "model.head"),
            )  # fmt: skip
        yield from captioned_pictures(self.picture_json, self.image_dir, checkpoint, encoder)

    def train_dataloader(self) -> DataLoader[LensSequence]:
        """Return batches of shuffled sequences."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[LensSequence]:
        """Return batches of held-out sequences."""
        return self._loader(self.validation, shuffle=False)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leave sequences on the host; the module moves what it needs."""
        return batch

    def _loader(self, sequences: _Sequences, shuffle: bool) -> DataLoader[LensSequence]:
        return DataLoader(
            cast("Dataset[LensSequence]", sequences),
            batch_size=self.batch_size,
            shuffle=shuffle,
            collate_fn=list,
        )
