"""The playground without its page: draws, shows maps, keeps a history, saves it."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from PIL import Image

from lit_dola.apps.caller_queue import CallerQueue, Stopped, Ticket
from lit_dola.apps.limits import Limits
from lit_dola.errors import UserError, writing_to
from lit_dola.pipeline import JanusPipeline
from lit_dola.reports.compare import compare
from lit_dola.reports.generation import Generation
from lit_dola.reports.inspection_plot import inspection_map
from lit_dola.reports.reproduce import command_for, config_for
from lit_dola.runs.claim import is_alive
from lit_dola.runs.files import safe_name
from lit_dola.runs.image_file import Format
from lit_dola.runs.records import ONLY_WITH_DOLA, ImageRecord
from lit_dola.tasks.preview import GREY, ImageStep

_PREFIX = "lit-dola-play-"
"""Of the temporary folders of drawings, before the process that they belong to."""
_PREVIEWS = 12
"""Previews of an image while it is drawn."""
_LOOK = 0.2
"""Seconds between two looks whether there is a preview."""


@dataclass(frozen=True)
class Wish:
    """Request of a drawing."""

    prompt: str
    images: int
    seed: int
    settings: dict[str, Any]
    """Settings of the model that are not as configured."""


@dataclass(frozen=True)
class Run:
    """Images of one call, as files of a run."""

    made: Generation
    folder: Path
    records: list[ImageRecord]
    """Those of the files."""

    @property
    def files(self) -> list[Path]:
        """The images, in order."""
        return [self.folder / record.file_name for record in self.records]


@dataclass(frozen=True)
class Drawing:
    """The same prompt and noise without DoLa and with it."""

    number: int
    wish: Wish
    without: Run
    with_dola: Run

    @property
    def title(self) -> str:
        """Title in a history."""
        settings = {name: value for name, value in self.wish.settings.items() if value is not None}
        told = ", ".join(
            f"{name} {value if isinstance(value, str) else f'{value:g}'}"
            for name, value in settings.items()
        )
        return f"{self.number}: {self.wish.prompt:.60} (seed {self.wish.seed}, {told})"

    @property
    def command(self) -> str:
        """Commands that reproduce the images with DoLa, and those without it."""
        runs = (self.with_dola, "outputs/again"), (self.without, "outputs/again-without-dola")
        return "\n".join(command_for(run.records, to) for run, to in runs)

    @property
    def config(self) -> str:
        """Configuration that reproduces the images with DoLa."""
        return config_for(self.with_dola.records)

    def map(self, image: int, name: str) -> tuple[Image.Image, str]:
        """Show where DoLa changed an image, see :func:`inspection_map`."""
        made = self.with_dola.made
        return inspection_map(made.inspections[image], made.images[image], name)


Previews = tuple[list[Image.Image], list[Image.Image]]
"""Images so far, without DoLa and with it."""


@dataclass
class _Call:
    """Progress of a call of the model."""

    images: list[Image.Image]
    finished: int = 0
    """Images."""
    share: float = 0.0
    """Done of all images."""

    def follow(self, step: ImageStep) -> bool:
        """Note a step; returns whether there are new previews."""
        count = len(step.requests)
        self.share = (self.finished + count * step.index / step.count) / len(self.images)
        if step.index == step.count:
            self.finished += count
            return False
        if step.index % max(step.count // _PREVIEWS, 1):
            return False
        for request, image in zip(step.requests, step.preview()):
            self.images[request.image_index] = image
        return True


class Studio:
    """One model, drawing for one caller at a time.

    Args:
        pipeline: The model.
        settings: Settings of the model that are as configured.
        limits: Request limits.
        output_dir: Folder for saved histories.
        format: Format of image files.
        quality: Quality of jpg and webp, 1 to 100.
    """

    def __init__(
        self,
        pipeline: JanusPipeline,
        settings: dict[str, Any],
        limits: Limits,
        output_dir: Path,
        format: Format = "png",
        quality: int = 95,
    ) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.limits = limits
        self.output_dir = output_dir
        self.how: dict[str, Any] = {"format": format, "quality": quality}
        _delete_left_behind()
        self._drawn = TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-")  # for this user alone
        self._numbers = count()
        self._queue = CallerQueue(limits.max_queue)
        self._model = ThreadPoolExecutor(1)  # one call at a time

    @property
    def drawn(self) -> Path:
        """Folder of the files of all drawings until the process ends."""
        return Path(self._drawn.name)

    def draw(
        self, wish: Wish, number: int, caller: str = ""
    ) -> Iterator[int | float | Previews | Drawing]:
        """Draw without DoLa, then with it; closing the iterator stops the drawing.

        Args:
            wish: What to draw.
            number: The drawing's number in its history.
            caller: Who may stop it, see :meth:`stop`.

        Yields:
            How many drawings come first, an integer; then the share that is done, a float, and the
            images so far; last the drawing.
        """
        ticket = self._queue.join(caller)
        try:
            while before := self._queue.before(ticket):
                yield before
                time.sleep(_LOOK)
            yield from self._draw(wish, number, ticket)
        finally:
            self._queue.leave(ticket)

    def _draw(
        self, wish: Wish, number: int, ticket: Ticket
    ) -> Iterator[float | Previews | Drawing]:
        """Draw, once it is this drawing's turn."""
        prompt = self.limits.check_prompt("prompt", wish.prompt)
        images = self.limits.check_images("images", wish.images)
        shared = {**self.settings, **wish.settings, "seed": wish.seed, "parallel_size": images}
        runs: list[Run] = []
        shown: list[list[Image.Image]] = [[], []]
        for column, dola in enumerate((False, True)):
            call = partial(
                self.pipeline.generate, prompt, dola=dola, inspect=dola, progress=False, **shared
            )
            for now in self._steps(call, images, ticket):
                if isinstance(now, float):
                    yield (column + now) / 2
                    continue
                if isinstance(now, Generation):
                    runs.append(self._keep(now))
                    now = now.images
                shown[column] = now
                yield shown[0], shown[1]
        yield Drawing(number, wish, *runs)

    def _steps(
        self, call: Callable[..., Generation], images: int, ticket: Ticket
    ) -> Iterator[float | list[Image.Image] | Generation]:
        """Run a call in the model's thread; yield how far it is, and last what it returns."""
        previews: Queue[list[Image.Image]] = Queue()
        so_far = _Call([Image.new("RGB", (16, 16), GREY)] * images)

        def report(step: ImageStep) -> None:
            if ticket.ended.is_set():
                raise Stopped
            if so_far.follow(step):
                previews.put([*so_far.images])

        running = self._model.submit(call, callback_on_step=report)
        while not running.done() or not previews.empty():
            self._queue.before(ticket)
            try:
                yield previews.get(timeout=_LOOK)
            except Empty:
                yield so_far.share  # a disconnected caller is only noticed at a yield
        yield running.result()

    def _keep(self, made: Generation) -> Run:
        """Write the images, as predict would."""
        folder = self.drawn / f"{next(self._numbers):06}"
        # Plots of inspections take longer than an image; they are drawn when a history is saved.
        replace(made, inspections=[]).save(folder, gallery=False, **self.how)
        return Run(made, folder, [*ImageRecord.read(folder)])

    def save(self, history: Sequence[Drawing]) -> list[Path]:
        """Write a history as folders of runs, and a page per prompt that compares its runs.

        Args:
            history: The drawings; those of one prompt, seed and number of images are compared.

        Returns:
            The pages.

        Raises:
            UserError: If there is nothing to save, or it cannot be written.
        """
        if not history:
            raise UserError("empty", "at least one drawing", setting="history")
        with writing_to(self.output_dir, "output_dir"):
            folder = self._new_folder()
            groups: dict[Any, list[Drawing]] = {}
            for drawing in history:
                wish = drawing.wish
                groups.setdefault((wish.prompt, wish.seed, wish.images), []).append(drawing)
            return [
                self._save_group(folder / f"{place:02}_{safe_name(group[0].wish.prompt)}", group)
                for place, group in enumerate(groups.values())
            ]

    def _new_folder(self) -> Path:
        """Return a folder for a history that does not exist yet."""
        for number in count():
            folder = self.output_dir / f"history-{number:03}"
            with suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
        raise AssertionError

    def _save_group(self, folder: Path, drawings: Sequence[Drawing]) -> Path:
        """Write the runs of one prompt, each different one once, and a page that compares them."""
        runs: list[str] = []
        seen: list[Any] = []
        for drawing in drawings:
            for run, name in ((drawing.without, "without"), (drawing.with_dola, "with")):
                if (settings := _effective(run)) not in seen:
                    seen.append(settings)
                    runs.append(str(folder / f"{drawing.number}-{name}"))
                    run.made.save(runs[-1], **self.how)
        compare(runs, str(folder / "compare"))
        return folder / "compare" / "index.html"

    def stop(self, caller: str) -> None:
        """Stop what a caller draws or waits for."""
        self._queue.stop(caller)

    def forget(self, drawings: Iterable[Drawing]) -> None:
        """Delete the files of drawings that are no longer shown."""
        for drawing in drawings:
            for run in (drawing.without, drawing.with_dola):
                shutil.rmtree(run.folder, ignore_errors=True)

    def close(self) -> None:
        """Stop drawing, and delete the files of drawings that were not saved."""
        self._queue.stop()
        self._model.shutdown(cancel_futures=True)
        shutil.rmtree(self._drawn.name, ignore_errors=True)


def _delete_left_behind() -> None:
    """Delete the drawings of this user's playgrounds that were killed."""
    for folder in Path(gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).split("-")[0]
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid() and pid.isdecimal() and not is_alive(int(pid)):
                shutil.rmtree(folder)


def _effective(run: Run) -> dict[str, Any]:
    """Return the settings that shaped a run."""
    settings = run.made.records[0].settings
    unused = () if settings["dola"] else ONLY_WITH_DOLA
    return {name: value for name, value in settings.items() if name not in unused}
