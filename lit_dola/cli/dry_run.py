"""``--dry_run true``: the size of a run, without a model or a device."""

import math
from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace

from lit_dola.callbacks.run_writer import RunWriter
from lit_dola.data.base import RequestDataModule
from lit_dola.messages import amount, printable
from lit_dola.runs.folder import RunFiles
from lit_dola.tasks.base import JanusModule


def describe(
    model: JanusModule, data: RequestDataModule, writer: RunWriter, trainer: Namespace
) -> Iterator[str]:
    """Yield lines about the size of a run: results, batches, disk.

    Args:
        model: The model, which is not loaded.
        data: The entries, which are read.
        writer: The writer; its folder is read and not changed.
        trainer: Settings of the trainer; its devices need not exist.
    """
    data.attach(model)
    data.prepare_data()
    data.setup("predict")
    plan, results = data.plan, writer.kind.results
    done = _done(writer)
    same = [done[it.key] == it.subject for it in plan.requests if it.key in done]
    there, others = same.count(True), same.count(False)
    to_make = len(plan.requests) - there
    skipped = f", {amount(len(plan.failures), 'entries')} skipped" if plan.failures else ""
    yield (
        f"{amount(to_make, results)} to generate, {there:,} existing{skipped}, in"
        f" {printable(str(writer.output_dir))}"
    )
    if others:
        yield f"{others:,} of another run exist, too: see writer.on_mismatch"
    ranks, size = _ranks(trainer), plan.batch_size
    share = math.ceil(to_make / (ranks or 1))
    who = f"{amount(ranks, 'ranks')}: at most {share:,} each" if ranks else "a rank per device"
    batches = "batches as large as the memory allows"
    if size is not None:
        count = amount(math.ceil(share / size), "batches") if ranks else "batches"
        batches = f"{count} of at most {size:,}"
    yield f"{who}, in {batches}"
    if estimate := writer.estimated_bytes(model, plan):
        yield f"about {_bytes(to_make * estimate)} of disk"


def _done(writer: RunWriter) -> dict[Any, str]:
    """Return the subjects of existing results, by key."""
    if not writer.output_dir.is_dir():
        return {}
    files = RunFiles(writer.output_dir)
    return {
        record.key: record.subject
        for record in writer.kind.read(writer.output_dir)
        if all(files.modified(file) is not None for file in writer.files_of(record) or ())
    }


def _ranks(trainer: Namespace) -> int | None:
    """Return how many processes the settings ask for; None if the devices decide."""
    devices, nodes = trainer.devices, int(trainer.num_nodes or 1)
    if isinstance(devices, str) and devices.strip().isdecimal():
        devices = int(devices)
    if isinstance(devices, list):
        return len(devices) * nodes
    return devices * nodes if isinstance(devices, int) and devices > 0 else None


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
