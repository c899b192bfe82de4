"""``python main.py verify``: does every promise hold on this machine, with this checkpoint."""

import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from logging import getLogger
from typing import Any

import torch
from jsonargparse.typing import PositiveFloat
from lightning.pytorch import Trainer

from lit_dola.data.plan import RunPlan
from lit_dola.data.prompts import PromptDataModule
from lit_dola.data.requests import ImageRequest
from lit_dola.decoding.prefill import Branches
from lit_dola.decoding.trial import reason_of
from lit_dola.errors import RankError, UserError, writing_to
from lit_dola.messages import printable
from lit_dola.runs.records import versions
from lit_dola.settings.checks import given_path, require
from lit_dola.tasks.generate import GeneratedImages, LitDoLa
from lit_dola.verification.findings import Row, promise, table_of, worst_of, write_findings
from lit_dola.verification.measure import total_memory
from lit_dola.verification.promises import (
    check_checkpoint,
    check_dola,
    check_logits,
    check_pixels,
    check_same_image,
    check_speculative,
)
from lit_dola.verification.speed import (
    Device,
    check_quantized,
    measure_dola,
    measure_fitting,
    measure_loops,
)
from lit_dola.verification.subject import Subject

_log = getLogger(__name__)
PROMPTS = [
    "a red circle",
    "two blue squares next to a green triangle",
    "a photo of a corgi on a beach, wearing sunglasses and a straw hat, at sunset, in the style of"
    " an old postcard",
    "a cross",
]
"""Prompts of different lengths."""
_WINDOW = 16
_SHORT = {"cuda": 32, "cpu": 12}
"""Tokens of an image that are compared."""

Check = Callable[[], Iterator[Row]]


class LitVerify(LitDoLa):
    """Verifies a Janus, and how it draws images, in the one predict step that it runs.

    Args:
        settings: Settings of :class:`lit_dola.tasks.generate.LitDoLa`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.minutes = 2.0
        self.quantized = False
        self.ranks: list[tuple[list[Row], list[str]]] = []
        """Findings and omissions of each rank."""

    def most_at_once(self, plan: RunPlan) -> int:
        """Return no limit: the batch that fits is verified, however few prompts there are."""
        return int(torch.iinfo(torch.int32).max)

    def on_predict_start(self) -> None:
        """Restore what the precision has cast; the token loop is made after the first checks."""
        self.janus.restore_float32()

    def on_predict_end(self) -> None:
        """Free nothing: the token loop is gone by now."""

    def predict_step(self, batch: list[ImageRequest], batch_idx: int) -> GeneratedImages:
        """Run all checks; generates nothing."""
        if batch_idx == 0:
            own = self._verify(), self._subject.left_out
            self.ranks = [own] * self.trainer.world_size
            if self.trainer.world_size > 1:
                torch.distributed.all_gather_object(self.ranks, own)
        return GeneratedImages([], [])

    def _verify(self) -> list[Row]:
        """Run the checks, the cheapest first; the loop of a run is made on all ranks at once."""
        subject = self._subject = self._make_subject()
        plan = self.plan
        rows = self._run({
            "checkpoint": partial(check_checkpoint, subject, plan.checkpoint, plan.encoder),
            "logits": partial(check_logits, subject),
            "dola": partial(check_dola, subject),
            "pixels": partial(check_pixels, subject),
        })  # fmt: skip
        rows += self._choose()
        device = Device(subject)
        rows += self._run({
            "same image": partial(check_same_image, subject, self.generator),
            "speed": partial(measure_fitting, subject, device, self.generator),
        })  # fmt: skip
        del self.generator
        rows += self._run({
            "speculative": partial(check_speculative, subject),
            "loops": partial(measure_loops, subject, device),
            "DoLa over baseline": partial(measure_dola, subject),
        })  # fmt: skip
        if self.quantized:
            rows += self._run({"quantized": partial(check_quantized, subject, self._quantize)})
        return rows

    def _make_subject(self) -> Subject:
        assert self.plan.batch_size is not None
        return Subject(
            self.janus,
            self.dola_scoring,
            self.dola_layer(self.plan.checkpoint),
            self._prompts(),
            exact=self.is_exact,
            fitting=self.plan.batch_size,
            short=min(_SHORT[self.device.type], self.janus.num_image_tokens),
            compile=self.compiles,
            graphs=self.device.type == "cuda",
            lens=self.readout(),
            window=self.speculative or _WINDOW,
            deadline=time.monotonic() + 60 * self.minutes,
        )

    def _prompts(self) -> list[Branches]:
        """Return the branches of the distinct prompts."""
        found: dict[str, Branches] = {}
        for request in self.plan.asked_for:
            assert isinstance(request, ImageRequest)
            found.setdefault(request.entry.text, self._branches(request))
        return [found[text] for text in PROMPTS]

    def _run(self, checks: dict[str, Check]) -> list[Row]:
        """Run checks, each until it fails; one that raises an error has failed."""
        rows: list[Row] = []
        for name, check in checks.items():
            self.call_on_step(0)  # ends here after a signal
            if not self._subject.in_time(name):
                continue
            if self.trainer.is_global_zero:
                _log.info("checking %s", name)
            try:
                with torch.inference_mode():
                    rows.extend(check())
            except Exception as error:  # whatever a machine that nobody has seen raises
                rows.append(promise(f"{name}: error", reason_of(error), "none", False, _ADVICE))
        return rows

    def _choose(self) -> list[Row]:
        """Make the token loop of a run, compiled if that works; say which one it is."""
        wanted = self.compiles
        try:
            super().on_predict_start()
        except RankError as error:
            fault: str | None = error.found
            self.compile_step = False
            super().on_predict_start()
        else:
            fault = self.fault
        self._subject.compile, self._subject.graphs = self.compiles, self.graphs
        if not wanted:
            return [Row("compiled step: tokens", "the step is not compiled here")]
        found = fault or f"{self.step_name()}: as the step as written"
        expected = "those of the step as written"
        advice = "--model.compile false, as runs do by themselves unless it is true"
        return [promise("compiled step: tokens", found, expected, fault is None, advice)]

    def _quantize(self, how: Any) -> Any:
        return self.load(
            self.plan.checkpoint,
            pad_token_id=self.plan.encoder.pad_token_id,
            dtype=self._subject.weight.dtype,
            device=self.device,
            quantize=how,
        )


_ADVICE = "a smaller --model.images_per_batch if it is memory; please report it with verify.json"


def verify(
    trainer: Trainer,
    model: LitVerify,
    minutes: PositiveFloat = 2.0,
    quantized: bool = False,
    output: str = "verify.json",
) -> None:
    """Verify on this machine, with this checkpoint, what the project promises.

    With several devices each rank verifies, and the worst is printed.

    Args:
        trainer: The trainer: devices and precision.
        model: The model, with the settings of images.
        minutes: After so many, from when the model is loaded, no further check or measurement
            starts; what is left out is printed.
        quantized: Also load the model with weights in fewer bits, and measure it.
        output: File of the findings, as JSON.

    Raises:
        UserError: If a promise does not hold, or a setting is wrong.
    """
    path = given_path("output", output)
    with writing_to(path, "output"):
        path.parent.mkdir(parents=True, exist_ok=True)
    if quantized:
        require("torchao", "quantized", extra="quantize")
    model.minutes, model.quantized = minutes, quantized
    prompts = [*islice(cycle(PROMPTS), max(len(PROMPTS), trainer.world_size))]
    try:
        trainer.predict(
            model, datamodule=PromptDataModule(prompts=prompts), return_predictions=False
        )
    except UserError as error:
        if error.setting not in ("", "model.model_path"):
            raise
        model.ranks = [([promise("checkpoint: loading", str(error), "", False)], [])]
    rows = worst_of([rows for rows, _ in model.ranks])
    failed = [row.name for row in rows if row.ok is False]
    if trainer.is_global_zero:
        left_out = [*dict.fromkeys(name for _, names in model.ranks for name in names)]
        write_findings(path, rows, left_out, _about(trainer, model, minutes))
        print(printable(table_of(rows, trainer.world_size)))
        if left_out:
            print(f"left out after {minutes:g} minutes: {', '.join(left_out)}; try --minutes")
        print(printable(str(path)))
    if failed:
        promises = sum(row.ok is not None for row in rows)
        raise UserError(f"{len(failed)} of {promises} promises fail: {', '.join(failed)}", at=path)


def _about(trainer: Trainer, model: LitVerify, minutes: float) -> dict[str, Any]:
    """Return what the findings are about."""
    device = trainer.strategy.root_device
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU"
    settings = {key: value for key, value in model.hparams.items() if value is not None}
    return {
        "device": f"{name}{total_memory(device)}",
        "devices": trainer.world_size,
        "threads": torch.get_num_threads(),
        "platform": f"{platform.platform()}, Python {platform.python_version()}",
        "cuda": torch.version.cuda if cuda else None,
        "versions": versions(),
        "precision": str(trainer.precision),
        "minutes": minutes,
        "settings": settings,
    }
