"""What a pipeline returns: images that know how they were made, and can become a run on disk."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from lit_dola.errors import UserError, given_path
from lit_dola.reports.gallery import write_gallery
from lit_dola.runs.files import make_folder
from lit_dola.runs.folder import image_path
from lit_dola.runs.image_file import Format, write_image
from lit_dola.runs.record_log import RESULTS, RecordLog
from lit_dola.runs.records import IMAGES, ImageRecord


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

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.images)

    def __repr__(self) -> str:
        prompts = {record.prompt_index: record.prompt for record in self.records}
        settings = self.records[0].settings
        names = ("alpha", "strength", "layer") if settings["dola"] else ()
        told = [f"dola={settings['dola']}", *(f"{name}={settings[name]}" for name in names)]
        told += [f"{name}={settings[name]}" for name in ("cfg_weight", "seed")]
        size = " x ".join(map(str, self.images[0].size))
        first = next(iter(prompts.values()))
        more = f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
        return f"<{len(self)} images of {size}: {first!r:.60}{more}; {', '.join(told)}>"

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
            made_with = {"format": format, "quality": None if format == "png" else quality}
            saved_records = []
            for record, image, tokens in zip(self.records, self.images, self.tokens):
                stem = image_path(record.prompt_index, record.prompt, record.image_index)
                settings = {**record.settings, **made_with}
                settings["versions"] = settings.pop("versions")  # last, as in predict's records
                saved = replace(record, file=f"{stem.as_posix()}.{format}", settings=settings)
                make_folder(path / stem.parent)
                kept = tokens.numpy() if save_tokens else None
                write_image(path, saved, image, format, quality, kept)
                saved_records.append(saved.to_line())
            RecordLog(path, IMAGES.log).write(saved_records)
            if gallery:
                write_gallery(path)
        except OSError as error:
            where = error.filename or path
            raise UserError(f"folder: cannot write to {where}: {error.strerror}") from error
        return path / "index.html" if gallery else path
