"""Saving images as they are made, each with a record of what made it."""

import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from io import BytesIO
from itertools import count
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jsonargparse.typing import restricted_number_type
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from lit_dola import __version__
from lit_dola.contact_sheet import write_prompt_grid
from lit_dola.data import ImageRequest, PromptDataModule
from lit_dola.decoding import ImageKey
from lit_dola.errors import RankError, UserError, require
from lit_dola.gallery import write_gallery
from lit_dola.image_file import Format, encode_image
from lit_dola.inspection import Inspection
from lit_dola.inspection_plot import write_inspection
from lit_dola.module import GeneratedImages, LitDoLa, to_pillow
from lit_dola.run_folder import (
    Lines,
    Record,
    append_line,
    delete_half_written,
    delete_images,
    differences,
    image_files,
    image_path,
    make_folder,
    prompt_folders,
    write_atomically,
)

if TYPE_CHECKING:
    Quality = int
else:
    Quality = restricted_number_type("Quality", int, [(">=", 1), ("<=", 100)])

_log = getLogger(__name__)
_MOST_WAITING = 256
"""Images that may wait to be written; past that the next batch waits for the disk."""
_LONGEST_WAIT = timedelta(days=365)
"""For the slowest rank: PyTorch would give it half an hour once the first has ended."""


class ImageWriter(BasePredictionWriter):
    """Writes ``{output_dir}/{index}_{prompt}/img_XX.jpg`` and a line an image of metadata.

    What an earlier run has left in the folder is kept, and is not made again.

    Args:
        output_dir: Folder of the run; made if it is not there.
        format: jpg, png or webp.
        quality: Quality of jpg and webp, 1 to 100.
        save_tokens: Whether each image's tokens are saved beside it, ``img_XX.npy``, int32.
        grid: Whether the images of each prompt are saved as one as well, ``grid.jpg``.
        gallery: Whether the run leaves ``index.html``, a page to look at its images.
        on_mismatch: What happens where the folder holds images of other settings or prompts: error,
            new_folder (go on in ``{output_dir}-2``, or the next that fits), or overwrite (delete
            those images).
    """

    def __init__(
        self,
        output_dir: str = "outputs",
        format: Format = "jpg",
        quality: Quality = 95,
        save_tokens: bool = False,
        grid: bool = False,
        gallery: bool = True,
        on_mismatch: Literal["error", "new_folder", "overwrite"] = "error",
    ) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = Path(output_dir).expanduser()
        self.format = format
        self.quality = quality
        self.save_tokens = save_tokens
        self.grid = grid
        self.gallery = gallery
        self.on_mismatch = on_mismatch
        self.num_failures = 0
        """Prompts and images that were skipped; known to the first rank at the end."""
        self._lock = Lock()
        self._writing: deque[Future[None]] = deque()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder before anything is generated, and leave out what is in it already.

        Raises:
            UserError: If it cannot be made or written to, or holds images of another run.
        """
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, LitDoLa)
        if pl_module.inspect:
            require("matplotlib", "model.inspect", extra="evaluation")
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PromptDataModule)
        self._settings = {
            **pl_module.image_settings(),
            "precision": trainer.precision,
            "format": self.format,
            "quality": None if self.format == "png" else self.quality,
        }
        self._versions = {
            "lit_dola": __version__,
            **{name: version(name) for name in ("torch", "transformers", "lightning")},
        }
        # One rank looks: on a network's file system another may see less.
        plan = self._plan(data, pl_module.inspect) if trainer.is_global_zero else None
        plan = trainer.strategy.broadcast(plan)
        if isinstance(plan, UserError):
            raise plan
        assert plan is not None
        self.output_dir, missing = plan
        data.keep_requests(missing)
        self._part, self._error_part = (
            Lines(self.output_dir, stem).of_rank(trainer.global_rank)
            for stem in ("metadata", "errors")
        )
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="writer")
        self._ranks = (
            torch.distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT)
            if trainer.world_size > 1
            else None
        )

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: GeneratedImages,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hand a batch of images to the threads that write them.

        Raises:
            UserError: If an image, this one or one before, cannot be written or made.
        """
        images = zip(*prediction[:3], strict=True)
        for place, (request, tokens, pixels) in enumerate(images):
            image = to_pillow(pixels)
            plot = None
            if place in prediction.inspections:
                plot = self._write_inspection(request, image, prediction.inspections[place])
            self._writing.append(
                self._threads.submit(self._write, request, image, tokens.numpy(), plot)
            )
        data = trainer.datamodule  # type: ignore[attr-defined]
        for failure in prediction.failures:
            if data.on_error == "stop":
                raise RankError(f"{data.prompt_json}: {failure.reason}")
            self._writing.append(
                self._threads.submit(self._append, self._error_part, failure._asdict())
            )
        self._finish(most_left=_MOST_WAITING)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until every image is written."""
        self._finish()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """What was generated is written, whatever ends the run."""
        while self._writing:
            with suppress(Exception):  # the exception that ended the run is what is told
                self._finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge the lines of all ranks into ``metadata.jsonl``: here, for a rank without images.

        Raises:
            UserError: If another rank has ended early, or something cannot be written.
        """
        self._threads.shutdown()
        if self._ranks is not None:
            _wait_for(self._ranks)
        try:
            if trainer.is_global_zero:
                Lines(self.output_dir, "metadata").merge()
                self.num_failures = Lines(self.output_dir, "errors").merge()
                delete_half_written(self.output_dir, before=self._began)
                if self.gallery:
                    write_gallery(self.output_dir, self.num_failures)
            if self.grid:
                folders = sorted(prompt_folders(self.output_dir))
                for prompt_folder in folders[trainer.global_rank :: trainer.world_size]:
                    write_prompt_grid(prompt_folder, self.quality)
        except OSError as error:
            raise RankError(self._cannot_write(error)) from error

    def _plan(
        self, data: PromptDataModule, inspected: set[ImageKey]
    ) -> tuple[Path, list[int]] | UserError:
        """The folder, and the places of the requests that are missing there; or what is wrong."""
        prompts = {request.prompt.prompt_index: request.prompt.text for request in data.requests}
        if absent := inspected - {request.key for request in data.requests}:
            return UserError(
                f"model.inspect: {[*min(absent)]} is no image of this run; expected [place of a"
                f" prompt in {data.prompt_json}, number of its image], both from 0"
            )
        try:
            folder = self._choose_folder(prompts)
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder) as file:  # what cannot be written shows at once
                self._began = os.fstat(file.fileno()).st_mtime
            done = self._done(folder, inspected)
            for failure in data.failures:
                append_line(Lines(folder, "errors").of_rank(0), failure._asdict())
        except UserError as error:
            return error
        except OSError as error:
            return UserError(self._cannot_write(error))
        requests = enumerate(data.requests)
        return folder, [place for place, request in requests if self._file(request) not in done]

    def _choose_folder(self, prompts: dict[int, str]) -> Path:
        folder = self.output_dir
        for number in count(2):
            found = differences(Lines(folder, "metadata").records(), self._settings, prompts)
            if not found:
                break
            if self.on_mismatch == "error":
                raise UserError(
                    f"writer.output_dir: {folder} holds images of another run: {'; '.join(found)};"
                    " expected the same settings and prompts, another folder, or"
                    " writer.on_mismatch new_folder or overwrite"
                )
            if self.on_mismatch == "overwrite":
                delete_images(folder)
                break
            folder = Path(f"{os.path.abspath(self.output_dir)}-{number}")
        if folder != self.output_dir:
            _log.warning("%s holds images of another run; writing to %s", self.output_dir, folder)
        return folder

    def _done(self, folder: Path, inspected: set[ImageKey]) -> set[str]:
        """Images that are whole, by name, from a record that this run can keep."""
        files = image_files(folder)
        done = set()

        def is_done(record: Record) -> bool:
            file = record.get("file", "")
            whole = file in files and (not self.save_tokens or _tokens_of(file) in files)
            key = (record["prompt_index"], record["image_index"])
            if whole and (key not in inspected or "inspection" in record):
                done.add(file)
            return file in done

        Lines(folder, "metadata").merge(is_done)
        Lines(folder, "errors").merge(lambda record: False)  # they are found again
        return done

    def _file(self, request: ImageRequest) -> str:
        return f"{_path(request).as_posix()}.{self.format}"

    def _finish(self, most_left: int = 0) -> None:
        """Wait until few images are still to be written."""
        try:
            while len(self._writing) > most_left or (self._writing and self._writing[0].done()):
                self._writing.popleft().result()
        except OSError as error:
            raise RankError(self._cannot_write(error)) from error

    def _cannot_write(self, error: OSError) -> str:
        return (
            f"writer.output_dir: cannot write to {error.filename or self.output_dir}:"
            f" {error.strerror}; what was written is kept, the same command goes on from there"
        )

    def _write(
        self, request: ImageRequest, image: Image.Image, tokens: np.ndarray, plot: Path | None
    ) -> None:
        """Write an image and its tokens, then its line: an image that has one is whole."""
        file = self._file(request)
        record = {
            "file": file,
            "prompt": request.prompt.text,
            "prompt_index": request.prompt.prompt_index,
            "image_index": request.image_index,
            **self._settings,
            "versions": self._versions,
        }
        make_folder((self.output_dir / file).parent)
        if self.save_tokens:
            npy = BytesIO()
            np.save(npy, tokens)
            write_atomically(self.output_dir / _tokens_of(file), [npy.getvalue()])
        content = encode_image(image, record, self.format, self.quality)
        write_atomically(self.output_dir / file, [content])
        record["metadata"] = request.prompt.metadata
        if plot:
            record["inspection"] = plot.relative_to(self.output_dir).as_posix()
        self._append(self._part, record)

    def _write_inspection(
        self, request: ImageRequest, image: Image.Image, inspection: Inspection
    ) -> Path:
        """Here and not on the threads, of which matplotlib can bear one; gives the plot's path."""
        path = self.output_dir / _path(request)
        try:
            make_folder(path.parent)
            return write_inspection(path, inspection, image)
        except OSError as error:
            raise RankError(self._cannot_write(error)) from error

    def _append(self, part: Path, record: Record) -> None:
        with self._lock:
            append_line(part, record)


def find_writer(trainer: Trainer) -> ImageWriter | None:
    """The writer of a run; on the command line there is always one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, ImageWriter)), None)


def _path(request: ImageRequest) -> Path:
    prompt = request.prompt
    return image_path(prompt.prompt_index, prompt.text, request.image_index)


def _tokens_of(file: str) -> str:
    return Path(file).with_suffix(".npy").as_posix()


def _wait_for(ranks: Any) -> None:
    """Wait for all ranks, in a way that a signal can end."""
    try:
        barrier = torch.distributed.barrier(group=ranks, async_op=True)
        while not barrier.is_completed():
            time.sleep(0.1)
        barrier.wait()
    except RuntimeError as error:
        raise RankError(
            "another rank ended early; what was written is kept, the same command goes on from"
            " there"
        ) from error
