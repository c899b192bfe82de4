"""Writing answers, each with a record of its settings."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from lit_dola.callbacks.run_writer import RunWriter
from lit_dola.data.requests import Failure
from lit_dola.reports.answers import write_answers
from lit_dola.runs.answers import AnswerRecord
from lit_dola.runs.resume import OnMismatch
from lit_dola.tasks.answer import Answers


class AnswerWriter(RunWriter):
    """Writes one line per question to ``answers.jsonl``.

    Answers of an earlier run in the folder are kept and not generated again.

    Args:
        output_dir: Folder of the run; created if needed.
        page: Write ``index.html``, a page to look through the answers.
        logprobs: Record the log-probability of each token, in ``logprobs`` and
            ``sampled_logprobs``: under the model's own distribution, and under the one that the
            token was drawn from.
        on_mismatch: Action if the folder holds answers of other settings or questions: error,
            new_folder (use ``{output_dir}-2``, or the next one that fits), or overwrite (delete
            those answers).
    """

    kind = AnswerRecord

    def __init__(
        self,
        output_dir: str = "outputs",
        page: bool = True,
        logprobs: bool = False,
        on_mismatch: OnMismatch = "error",
    ) -> None:
        super().__init__(output_dir, on_mismatch)
        self.page = page
        self.logprobs = logprobs

    def files_of(self, record: AnswerRecord) -> Sequence[str] | None:
        """Return None if log-probabilities are asked for and the record has none."""
        return None if self.logprobs and record.logprobs is None else ()

    def write_batch(self, results: Answers) -> Sequence[Failure]:
        """Submit the records of a batch of answers."""
        for answer in results.answers:
            record = AnswerRecord.of(*answer, self.record_settings(), self.run.relative)
            self.run.submit(self.run.append, record, answer.request.pictures)
        return results.failures

    def write_reports(self, trainer: Trainer) -> None:
        """Write the page."""
        if self.page and trainer.is_global_zero:
            write_answers(self.output_dir, self.outcome.num_failures)

    def opens(self) -> Path:
        """Return the page, or the records if there is none."""
        return self.output_dir / ("index.html" if self.page else f"{self.kind.log}.jsonl")
