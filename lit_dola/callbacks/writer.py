"""Writing images, each with a record of its settings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from PIL import Image

from lit_dola.callbacks.run_writer import RunWriter
from lit_dola.data.plan import RunPlan
from lit_dola.data.requests import Failure, ImageRequest, RequestKey
from lit_dola.decoding.inspection import Inspection
from lit_dola.errors import UserError
from lit_dola.janus.vq import to_pillow
from lit_dola.reports.contact_sheet import write_prompt_grid
from lit_dola.reports.gallery import write_gallery
from lit_dola.reports.inspection_plot import write_inspection
from lit_dola.runs.files import make_folder
from lit_dola.runs.folder import image_path, prompt_folders
from lit_dola.runs.image_file import (
    Arrays,
    Format,
    SaveTokens,
    format_settings,
    tokens_file,
    write_image,
)
from lit_dola.runs.open_run import cannot_write
from lit_dola.runs.records import ImageRecord
from lit_dola.runs.resume import OnMismatch
from lit_dola.settings.checks import require
from lit_dola.settings.numbers import Quality
from lit_dola.tasks.base import JanusModule
from lit_dola.tasks.generate import GeneratedImages, LitDoLa

_BYTES_PER_PIXEL = {"jpg": 0.45, "png": 1.6, "webp": 0.35}
"""Of crops of a photograph, 384 pixels wide, at the default quality."""
_RECORD_BYTES = 1500
"""Of a record and its place in the gallery."""


class ImageWriter(RunWriter):
    """Writes ``{index}_{prompt}/img_XX.jpg`` and one line per image to ``metadata.jsonl``.

    Images of an earlier run in the folder are kept and not generated again.

    Args:
        output_dir: Folder of the run; created if needed.
        format: jpg, png or webp.
        quality: Quality of jpg and webp, 1 to 100.
        save_tokens: Save each image's tokens next to it, ``img_XX.npy``, int32. logprobs: in
            ``img_XX.npz``, with the log-probability in nats of each token under the model's own
            distribution (``logprob``) and under the one that it was drawn from
            (``sampled_logprob``), float32.
        grid: Also save all images of each prompt as one, ``grid.jpg``.
        gallery: Write ``index.html``, a page to look through the images.
        on_mismatch: Action if the folder holds images of other settings or prompts: error,
            new_folder (use ``{output_dir}-2``, or the next one that fits), or overwrite (delete
            those images).
        folders_per_group: How many folders of prompts to put into a folder such as ``00000-00999``;
            null: all into one, which slows some network file systems from 100,000 prompts on.
    """

    kind = ImageRecord

    def __init__(
        self,
        output_dir: str = "outputs",
        format: Format = "jpg",
        quality: Quality = 95,
        save_tokens: SaveTokens = False,
        grid: bool = False,
        gallery: bool = True,
        on_mismatch: OnMismatch = "error",
        folders_per_group: PositiveInt | None = None,
    ) -> None:
        super().__init__(output_dir, on_mismatch)
        self.format = format
        self.quality = quality
        self.save_tokens = save_tokens
        self.logprobs = save_tokens == "logprobs"
        self.grid = grid
        self.gallery = gallery
        self.folders_per_group = folders_per_group
        self._inspected: set[RequestKey] = set()

    def settings(self) -> dict[str, Any]:
        """Return the format and, unless the format is lossless, the quality."""
        return format_settings(self.format, self.quality)

    def check(self, module: JanusModule, plan: RunPlan) -> None:
        """Check that the images to inspect exist."""
        assert isinstance(module, LitDoLa)
        self._inspected = module.inspect
        if not module.inspect:
            return
        require("matplotlib", "model.inspect", extra="evaluation")
        if absent := module.inspect - {request.key for request in plan.requests}:
            raise UserError(
                f"{[*min(absent)]} is not an image of this run",
                f"[index of a prompt in {plan.entry_file}, index of its image], both from 0",
                setting="model.inspect",
            )

    def _file_of(self, request: ImageRequest) -> str:
        return f"{self._path(request).as_posix()}.{self.format}"

    def _path(self, request: ImageRequest) -> Path:
        entry = request.entry
        return image_path(entry.index, entry.text, request.image_index, self.folders_per_group)

    def files_of(self, record: ImageRecord) -> Sequence[str] | None:
        """Return the image, and its tokens and inspection if asked for."""
        files = [record.file_name]
        if self.save_tokens:
            files.append(tokens_file(record.file_name, self.save_tokens))
        if record.key in self._inspected:
            if record.inspection is None:
                return None
            files += [record.inspection, Path(record.inspection).with_suffix(".npz").as_posix()]
        return files

    def estimated_bytes(self, module: Any, plan: RunPlan) -> float:
        """Return roughly what an image of a photograph takes, with its record and tokens."""
        vision = plan.checkpoint.config.vision_config
        image = _BYTES_PER_PIXEL[self.format] * int(vision.image_size) ** 2
        numbers = 3 if self.logprobs else 1 if self.save_tokens else 0
        tokens = 4 * numbers * int(vision.num_image_tokens)
        return image + _RECORD_BYTES + tokens

    def write_batch(self, results: GeneratedImages) -> Sequence[Failure]:
        """Submit a batch of images; inspections are written at once."""
        for made in results.images:
            image = to_pillow(made.pixels)
            file = self._file_of(made.request)
            record = ImageRecord.of(made, self.run_settings, file, **self.settings())
            if made.inspection is not None:
                plot = self._write_inspection(record, image, made.inspection)
                record = replace(record, inspection=plot.relative_to(self.output_dir).as_posix())
            tokens = made.arrays() if self.save_tokens else None
            self.run.submit(self._write, record, image, tokens)
        return results.failures

    def _write(self, record: ImageRecord, image: Image.Image, tokens: Arrays | None) -> None:
        """Write an image and its tokens, then its record: a record means that both are complete."""
        self._make_folder_of(self.output_dir / record.file_name)
        write_image(self.output_dir, record, image, self.format, self.quality, tokens)
        self.run.append(record)

    def _make_folder_of(self, path: Path) -> None:
        if self.folders_per_group is not None:
            make_folder(path.parent.parent)
        make_folder(path.parent)

    def _write_inspection(
        self, record: ImageRecord, image: Image.Image, inspection: Inspection
    ) -> Path:
        """Write a plot on the main thread, as matplotlib is not thread-safe; return its path."""
        path = self.output_dir / record.file_name
        try:
            self._make_folder_of(path)
            return write_inspection(path.with_suffix(""), inspection, image, record)
        except OSError as error:
            raise cannot_write(self.output_dir, error) from error

    def write_reports(self, trainer: Trainer) -> None:
        """Write the gallery, and each rank's share of the grids."""
        if self.gallery and trainer.is_global_zero:
            write_gallery(self.output_dir, self.outcome.num_failures)
        if self.grid:
            folders = sorted(prompt_folders(self.output_dir))
            for prompt_folder in folders[trainer.global_rank :: trainer.world_size]:
                write_prompt_grid(prompt_folder, self.quality)

    def opens(self) -> Path:
        """Return the gallery, or the folder if there is none."""
        return self.output_dir / "index.html" if self.gallery else self.output_dir
