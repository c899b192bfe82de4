"""Saving images as they are made, each with a record of what made it."""

import json
import os
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from jsonargparse.typing import restricted_number_type
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from lit_dola import __version__
from lit_dola.data import ImageRequest
from lit_dola.errors import UserError
from lit_dola.module import GeneratedImages, LitDoLa

if TYPE_CHECKING:
    Quality = int
else:
    Quality = restricted_number_type("Quality", int, [(">=", 1), ("<=", 100)])

_MAX_NAME_BYTES = 80
_MOST_WAITING = 256
"""Images that may wait to be written; past that the next batch waits for the disk."""
_MAX_EXIF_CHARACTERS = 2000
"""EXIF as a whole must stay under 64 KiB; a longer prompt is whole in ``metadata.jsonl``."""
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+')
"""Separators, what Windows forbids, control characters, and marks that turn text around."""


class ImageWriter(BasePredictionWriter):
    """Writes ``{output_dir}/{index}_{prompt}/img_XX.jpg`` and a line an image of metadata.

    Args:
        output_dir: Folder of the run; made if it is not there.
        format: jpg, png or webp.
        quality: Quality of jpg and webp, 1 to 100.
        save_tokens: Whether each image's tokens are saved beside it, ``img_XX.npy``, int32.
    """

    def __init__(
        self,
        output_dir: str = "outputs",
        format: Literal["jpg", "png", "webp"] = "jpg",
        quality: Quality = 95,
        save_tokens: bool = False,
    ) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = Path(output_dir).expanduser()
        self.format = format
        self.quality = quality
        self.save_tokens = save_tokens
        self._writing: deque[Future[str]] = deque()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder before anything is generated.

        Raises:
            UserError: If it cannot be made or written to.
        """
        super().setup(trainer, pl_module, stage)
        self._versions = {
            "lit_dola": __version__,
            **{name: version(name) for name in ("torch", "transformers", "lightning")},
        }
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="writer")
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.output_dir).close()
        except OSError as error:
            raise UserError(
                f"writer.output_dir: cannot write to {self.output_dir}: {error.strerror}"
            ) from error

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
            UserError: If an image, this one or one before, cannot be written.
        """
        assert isinstance(pl_module, LitDoLa)
        run = {
            **pl_module.image_settings(),
            "precision": trainer.precision,
            "versions": self._versions,
        }
        for request, tokens, pixels in zip(*prediction, strict=True):
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            self._writing.append(
                self._threads.submit(self._write, request, image, tokens.numpy(), run)
            )
        self._finish(trainer.global_rank, most_left=_MOST_WAITING)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the lines that the ranks wrote into ``metadata.jsonl``, sorted, an image a line."""
        self._finish(trainer.global_rank)
        trainer.strategy.barrier("metadata")
        if not trainer.is_global_zero:
            return
        merged = self.output_dir / "metadata.jsonl"
        parts = [self._part(rank) for rank in range(trainer.world_size)]
        records = {}
        for part in [merged, *parts]:
            if part.is_file():
                with part.open(encoding="utf-8") as file:
                    for line in file:
                        record = json.loads(line)
                        records[record["file"]] = (
                            record["prompt_index"],
                            record["image_index"],
                            line,
                        )
        ordered = sorted(records.values())
        write_atomically(
            merged, lambda file: file.writelines(line.encode() for *_, line in ordered)
        )
        for part in parts:
            part.unlink(missing_ok=True)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """What was generated is written, whatever ends the run."""
        while self._writing:
            with suppress(UserError):  # the exception itself is what is told
                self._finish(trainer.global_rank)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _finish(self, rank: int, most_left: int = 0) -> None:
        """Wait until few images are still to be written, and record those that are.

        An image has its line of metadata only once it lies on the disk.
        """
        lines = []
        try:
            while len(self._writing) > most_left or (self._writing and self._writing[0].done()):
                lines.append(self._writing.popleft().result())
        except OSError as error:
            raise UserError(
                f"writer.output_dir: cannot write to {error.filename or self.output_dir}:"
                f" {error.strerror}"
            ) from error
        finally:
            if lines:
                with self._part(rank).open("a", encoding="utf-8") as file:
                    file.writelines(lines)

    def _write(
        self, request: ImageRequest, image: Image.Image, tokens: np.ndarray, run: dict[str, Any]
    ) -> str:
        """Write an image and its tokens; gives its line of metadata."""
        path = image_path(request).with_suffix(f".{self.format}")
        record = {
            "file": path.as_posix(),
            "prompt": request.prompt.text,
            "prompt_index": request.prompt.prompt_index,
            "image_index": request.image_index,
            **run,
        }
        self._write_image(image, path, record)
        if self.save_tokens:
            write_atomically(
                (self.output_dir / path).with_suffix(".npy"), partial(np.save, arr=tokens)
            )
        record["metadata"] = request.prompt.metadata
        return json.dumps(record, ensure_ascii=False) + "\n"

    def _part(self, rank: int) -> Path:
        return self.output_dir / f"metadata.{rank}.jsonl"

    def _write_image(self, image: Image.Image, path: Path, record: dict[str, Any]) -> None:
        """Write an image that carries its own record: text chunks in PNG, else EXIF."""
        if self.format == "png":
            info = PngInfo()
            info.add_itxt("prompt", record["prompt"])
            info.add_itxt("parameters", json.dumps(record, ensure_ascii=False))
            options: dict[str, Any] = {"pnginfo": info}
        else:
            options = {"exif": _exif(record), "quality": self.quality}
            if self.format == "jpg":
                options["subsampling"] = 0  # full colour resolution, as a quality of 95 asks for
        pillow_format = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[self.format]
        (self.output_dir / path).parent.mkdir(exist_ok=True)
        write_atomically(
            self.output_dir / path, lambda file: image.save(file, pillow_format, **options)
        )


def image_path(request: ImageRequest) -> Path:
    """``{index}_{prompt}/img_XX``, relative to the output folder and without a suffix."""
    folder = f"{request.prompt.prompt_index:05}_{safe_name(request.prompt.text)}"
    return Path(folder.rstrip("_")) / f"img_{request.image_index:02}"


def safe_name(text: str, max_bytes: int = _MAX_NAME_BYTES) -> str:
    """Part of a file name that is safe on Linux, macOS and Windows; may be empty.

    White space becomes ``_``, Unicode is kept, and the length is bounded in UTF-8 bytes.
    """
    text = unicodedata.normalize("NFC", _UNSAFE.sub(" ", text))
    name = "_".join(text.split())
    return name.encode()[:max_bytes].decode(errors="ignore").rstrip("._ ")


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file under a temporary name, then rename it: no half-written file has its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _exif(record: dict[str, Any]) -> Image.Exif:
    """EXIF with the prompt as the description and the whole record, as JSON, as the comment."""
    prompt = record["prompt"][:_MAX_EXIF_CHARACTERS]
    comment = json.dumps({**record, "prompt": prompt}, ensure_ascii=False)
    exif = Image.Exif()
    # Bytes, since Pillow would write "?" for what is not ASCII; readers take them as UTF-8.
    exif[ExifTags.Base.ImageDescription] = prompt.encode()
    exif[ExifTags.Base.Software] = f"lit-dola {__version__}"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + comment.encode(
        "utf-16-be"
    )
    return exif
