"""Result of a pipeline: images with their settings, which can be saved as a run."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from lit_dola.decoding.inspection import Inspection
from lit_dola.errors import UserError, writing_to
from lit_dola.janus.vq import to_pillow
from lit_dola.registry import record_types
from lit_dola.reports.contact_sheet import tile
from lit_dola.reports.gallery import write_gallery
from lit_dola.reports.inspection_plot import inspection_figure, write_inspection
from lit_dola.runs.files import make_folder
from lit_dola.runs.folder import image_path
from lit_dola.runs.image_file import Format, SaveTokens, encode_image, format_settings, write_image
from lit_dola.runs.record_log import RecordLog
from lit_dola.runs.records import ImageRecord, RunSettings
from lit_dola.settings.checks import given_path, require
from lit_dola.tasks.generate import GeneratedImage

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
    made: list[GeneratedImage]
    """Request and statistics of each image."""
    settings: RunSettings
    """Every setting that shaped the images."""
    inspections: list[Inspection] = field(default_factory=list)
    """Figures for every step of each image, if ``inspect`` was true; else empty."""

    @property
    def logprobs(self) -> Tensor | None:
        """Log-probability in nats of each token under the model's own distribution.

        That is the final layer's of the prompt's row at temperature 1, without DoLa and guidance.
        Float32 ``(images, num_image_tokens)``; None unless ``logprobs`` was true.
        """
        return self._logprobs(0)

    @property
    def sampled_logprobs(self) -> Tensor | None:
        """The same under the distribution that it was drawn from, after all settings."""
        return self._logprobs(1)

    def _logprobs(self, kind: int) -> Tensor | None:
        found = [image.logprobs[kind] for image in self.made if image.logprobs is not None]
        return torch.stack(found) if found else None

    @classmethod
    def of(cls, made: Sequence[GeneratedImage], settings: RunSettings) -> "Generation":
        """Return the generation of images, in their order."""
        return cls(
            [to_pillow(image.pixels) for image in made],
            torch.stack([image.tokens for image in made]),
            [image._replace(pixels=torch.empty(0), inspection=None) for image in made],
            settings,
            [image.inspection for image in made if image.inspection is not None],
        )

    @cached_property
    def records(self) -> list[ImageRecord]:
        """Prompt, indices and every setting of each image; ``file`` is empty until it is saved."""
        return [ImageRecord.of(image, self.settings) for image in self.made]

    def record(self, index: int, format: Format, quality: int) -> ImageRecord:
        """Return the record of an image in a file.

        Args:
            index: Index of the image.
            format: jpg, png or webp.
            quality: Quality of jpg and webp, 1 to 100.
        """
        request = self.made[index].request
        stem = image_path(request.entry.index, request.entry.text, request.image_index)
        return ImageRecord.of(
            self.made[index],
            self.settings,
            f"{stem.as_posix()}.{format}",
            **format_settings(format, quality),
        )

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
            index: Index of the image.

        Returns:
            A figure of matplotlib, which must be installed.

        Raises:
            UserError: If the images were not inspected.
        """
        if not self.inspections:
            raise UserError("the images were not inspected", "inspect=True", setting="figure")
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
            index: Index of the image.
            format: jpg, png or webp.
            quality: Quality of jpg and webp, 1 to 100.
        """
        record = self.record(index, format, quality)
        return encode_image(self.images[index], record.provenance(), format, quality)

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        format: Format = "jpg",
        quality: int = 95,
        save_tokens: SaveTokens = False,
        gallery: bool = True,
    ) -> Path:
        """Write the folder that ``predict`` writes for the same prompts and settings.

        Args:
            folder: A new or empty folder.
            format: jpg, png or webp.
            quality: Quality of jpg and webp, 1 to 100.
            save_tokens: Save each image's tokens next to it; logprobs: with their
                log-probabilities.
            gallery: Write ``index.html``.

        Returns:
            The gallery, or the folder if there is none.

        Raises:
            UserError: If the folder holds results of a run, or cannot be written to.
        """
        path = given_path("folder", folder)
        with writing_to(path, "folder"):
            path.mkdir(parents=True, exist_ok=True)
            if any(RecordLog(path, kind).exists() for kind in record_types().values()):
                raise UserError(f"{path} holds results of a run", "another one", setting="folder")
            if save_tokens == "logprobs" and self.logprobs is None:
                raise UserError(
                    "no log-probabilities were measured", "logprobs=True", setting="save_tokens"
                )
            lines = []
            for place in range(len(self)):
                made = self.made[place]
                made = made if save_tokens == "logprobs" else made._replace(logprobs=None)
                tokens = made.arrays() if save_tokens else None
                saved = self.record(place, format, quality)
                make_folder((path / saved.file_name).parent)
                if self.inspections:
                    saved = self._save_inspection(path, place, saved)
                write_image(path, saved, self.images[place], format, quality, tokens)
                lines.append(saved.to_line())
            RecordLog(path, ImageRecord).write(lines)
            if gallery:
                write_gallery(path)
        return path / "index.html" if gallery else path

    def _save_inspection(self, folder: Path, place: int, record: ImageRecord) -> ImageRecord:
        stem = (folder / record.file_name).with_suffix("")
        plot = write_inspection(stem, self.inspections[place], self.images[place], record)
        return replace(record, inspection=plot.relative_to(folder).as_posix())
