"""What a pipeline returns: images that know how they were made, and can become a run on disk."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from lit_dola.decoding.inspection import Inspection
from lit_dola.errors import UserError, given_path, require
from lit_dola.reports.contact_sheet import tile
from lit_dola.reports.gallery import write_gallery
from lit_dola.reports.inspection_plot import inspection_figure, write_inspection
from lit_dola.runs.files import make_folder
from lit_dola.runs.folder import image_path
from lit_dola.runs.image_file import Format, encode_image, format_settings, write_image
from lit_dola.runs.record_log import RESULTS, RecordLog
from lit_dola.runs.records import IMAGES, ImageRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_SHOWN = 64
"""Images that a notebook shows."""
_SHOWN_SIZE = 192
"""Their width there, pixels."""


@dataclass(frozen=True)
class Generation:
    """The images of one call, ordered by prompt, then by index.

    Example:
        >>> made = pipeline("a red circle", parallel_size=2, alpha=0.02)
        >>> made.images[0].info["prompt"], made.records[1].settings["alpha"]
        ('a red circle', 0.02)
        >>> made.save("outputs/circles")
        PosixPath('outputs/circles/index.html')
    """

    images: list[Image.Image]
    """RGB; ``info`` has the prompt and, as ``parameters``, the settings in JSON."""
    tokens: Tensor
    """Int32 ``(images, num_image_tokens)``, on the CPU."""
    records: list[ImageRecord]
    """Prompt, indices and every setting of each image; ``file`` is empty until it is saved."""
    inspections: list[Inspection] = field(default_factory=list)
    """Where DoLa changed each image, step by step, if ``inspect`` was true; else empty."""

    def __len__(self) -> int:
        return len(self.images)

    def _repr_png_(self) -> bytes:
        """Show the images in a notebook, the first ones if there are many."""
        shown = [image.resize((_SHOWN_SIZE,) * 2) for image in self.images[:_MOST_SHOWN]]
        png = BytesIO()
        tile(shown, columns=min(4, len(shown))).save(png, "PNG")
        return png.getvalue()

    def figure(self, index: int = 0) -> "Figure":
        """Plot where DoLa changed an image, which was generated with ``inspect=True``.

        Args:
            index: Which of the images.

        Returns:
            A figure of matplotlib, which must be installed.

        Raises:
            UserError: If the images were not inspected.
        """
        if not self.inspections:
            raise UserError("figure: the images were not inspected; expected inspect=True")
        require("matplotlib", "inspect", extra="evaluation")
        return inspection_figure(self.inspections[index], self.images[index], self.records[index])

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.images)

    def __repr__(self) -> str:
        prompts = {record.prompt_index: record.prompt for record in self.records}
        settings = self.records[0].settings
        names = ("alpha", "strength", "layer") if settings["dola"] else ()
        told = [f"dola={settings['dola']}", *(f"{name}={settings[name]}" for name in names)]
        seeds = [*dict.fromkeys(record.settings["seed"] for record in self.records)]
        several = f"{seeds[:4]}".replace("]", ", ...]" if len(seeds) > 4 else "]")
        told += [f"cfg_weight={settings['cfg_weight']}"]
        told += [f"seed={several if len(seeds) > 1 else seeds[0]}"]
        size = " x ".join(map(str, self.images[0].size))
        first = next(iter(prompts.values()))
        more = f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
        return f"<{len(self)} images of {size}: {first!r:.60}{more}; {', '.join(told)}>"

    def encode(self, index: int = 0, *, format: Format = "png", quality: int = 95) -> bytes:
        """Return the file that ``predict`` writes for an image, with its record in it.

        Args:
            index: Which of the images.
            format: jpg, png or webp.
            quality: Quality of jpg and webp, 1 to 100.
        """
        record = _named(self.records[index], format, quality)
        return encode_image(self.images[index], record.provenance(), format, quality)

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        format: Format = "jpg",
        quality: int = 95,
        save_tokens: bool = False,
        gallery: bool = True,
    ) -> Path:
        """Write the folder that ``predict`` writes for the same prompts and settings.

        Args:
            folder: A new or empty folder.
            format: jpg, png or webp.
            quality: Quality of jpg and webp, 1 to 100.
            save_tokens: Whether to save each image's tokens next to it.
            gallery: Whether to write ``index.html``.

        Returns:
            The gallery, or the folder if there is none.

        Raises:
            UserError: If the folder holds results of a run, or cannot be written to.
        """
        path = given_path("folder", folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(RecordLog(path, log).exists() for log in RESULTS):
                raise UserError(f"folder: {path} holds results of a run; expected another one")
            lines = []
            for place, record in enumerate(self.records):
                tokens = self.tokens[place].numpy() if save_tokens else None
                saved = _named(record, format, quality)
                make_folder((path / saved.file).parent)
                if self.inspections:
                    saved = self._save_inspection(path, place, saved)
                write_image(path, saved, self.images[place], format, quality, tokens)
                lines.append(saved.to_line())
            RecordLog(path, IMAGES.log).write(lines)
            if gallery:
                write_gallery(path)
        except OSError as error:
            where = error.filename or path
            raise UserError(f"folder: cannot write to {where}: {error.strerror}") from error
        return path / "index.html" if gallery else path

    def _save_inspection(self, folder: Path, place: int, record: ImageRecord) -> ImageRecord:
        stem = (folder / record.file).with_suffix("")
        plot = write_inspection(stem, self.inspections[place], self.images[place], record)
        return replace(record, inspection=plot.relative_to(folder).as_posix())


def _named(record: ImageRecord, format: Format, quality: int) -> ImageRecord:
    """Return the record with the file that the image is written to."""
    stem = image_path(record.prompt_index, record.prompt, record.image_index)
    settings: dict[str, Any] = {}
    for name, value in record.settings.items():
        settings[name] = value
        if name == "precision":  # behind it, as in predict's records
            settings |= format_settings(format, quality)
    return replace(record, file=f"{stem.as_posix()}.{format}", settings=settings)
