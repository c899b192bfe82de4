"""Writing rankings, and the best image of each prompt into the run that they are about."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from lit_dola.callbacks.run_writer import RunWriter
from lit_dola.data.requests import Failure
from lit_dola.reports.best import write_best
from lit_dola.runs.ranks import RankRecord
from lit_dola.runs.resume import OnMismatch
from lit_dola.tasks.rank import Rankings


class RankWriter(RunWriter):
    """Writes one line per item to ``ranks.jsonl``.

    Rankings of an earlier run in the folder are kept and not computed again.

    Args:
        output_dir: Folder of the run; created if needed.
        on_mismatch: Action if the folder holds rankings of other settings or items: error,
            new_folder (use ``{output_dir}-2``, or the next one that fits), or overwrite (delete
            those rankings).
    """

    kind = RankRecord

    def __init__(self, output_dir: str = "outputs", on_mismatch: OnMismatch = "error") -> None:
        super().__init__(output_dir, on_mismatch)
        self._gallery: Path | None = None

    def write_batch(self, results: Rankings) -> Sequence[Failure]:
        """Submit the records of a batch of rankings."""
        for ranking in results.rankings:
            record = RankRecord.of(*ranking, self.record_settings(), self.run.relative)
            self.run.submit(self.run.append, record, ranking.request.pictures)
        return results.failures

    def write_reports(self, trainer: Trainer) -> None:
        """Write the best image of each prompt into the run whose images were ranked."""
        run = self.run.plan.ranked_run
        if trainer.is_global_zero and run:
            write_best(run, self.output_dir)
            self._gallery = run / "index.html"

    def opens(self) -> Path:
        """Return the gallery of the run whose images were ranked, or else the records."""
        return self._gallery or self.output_dir / "ranks.jsonl"
