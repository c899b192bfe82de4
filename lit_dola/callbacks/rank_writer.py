"""Writing rankings, and the best image of each prompt into the run that they are about."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from lit_dola.callbacks.run_writer import RunWriter
from lit_dola.data.items import ItemDataModule
from lit_dola.data.requests import Failure
from lit_dola.reports.best import write_best
from lit_dola.reports.made import rank_record
from lit_dola.runs.ranks import RANKS
from lit_dola.runs.resume import OnMismatch
from lit_dola.tasks.rank import Rankings


class RankWriter(RunWriter):
    """Writes one line per item to ``ranks.jsonl``.

    Rankings that an earlier run left in the folder are kept and not made again.

    Args:
        output_dir: Folder of the run; created if needed.
        on_mismatch: What to do if the folder holds rankings of other settings or items: error,
            new_folder (use ``{output_dir}-2``, or the next one that fits), or overwrite (delete
            those rankings).
    """

    kind = RANKS

    def __init__(self, output_dir: str = "outputs", on_mismatch: OnMismatch = "error") -> None:
        super().__init__(output_dir, on_mismatch)
        self._gallery: Path | None = None

    def write_batch(self, results: Rankings) -> Sequence[Failure]:
        """Submit the records of a batch of rankings."""
        for ranking in results.rankings:
            record = rank_record(ranking, self.record_settings(), self.run.relative)
            self.run.submit(self.run.append, record)
        return results.failures

    def write_reports(self, trainer: Trainer) -> None:
        """Write the best image of each prompt into the run whose images were ranked."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and isinstance(data, ItemDataModule) and data.run:
            write_best(data.run, self.output_dir)
            self._gallery = data.run / "index.html"

    def opens(self) -> Path:
        """Return the gallery of the run whose images were ranked, or else the records."""
        return self._gallery or self.output_dir / "ranks.jsonl"
