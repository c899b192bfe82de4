"""A page to try DoLa on: ``main.py play``."""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from logging import CRITICAL, getLogger
from socket import socket
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from PIL.Image import Resampling

from lit_dola.apps.caller_queue import Stopped
from lit_dola.apps.limits import Limits
from lit_dola.apps.starting import (
    address_of,
    check_port,
    checked_checkpoint,
    how_to_load,
    log,
    make_output_dir,
    name_of,
    shared_settings,
    stop_on_signals,
    warn_if_open,
    without_proxies,
)
from lit_dola.apps.studio import Drawing, Studio, Wish
from lit_dola.callbacks.writer import ImageWriter
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.pipeline import JanusPipeline
from lit_dola.reports.inspection_plot import MAPS
from lit_dola.settings.checks import require
from lit_dola.settings.numbers import Port
from lit_dola.tasks.generate import LitDoLa

with without_proxies():  # Gradio creates a client as it is imported, for what is not used here
    import gradio as gr

    from lit_dola.apps.controls import ModelControls, plain, to_integer

_SAVED = "/saved"
"""Address of saved histories."""
_ONLY_OURS = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self';"
    " form-action 'self'; base-uri 'self'"
)
"""Content-Security-Policy that keeps the browser from fetching anything from elsewhere."""
_MOST_KEPT = 50
"""Drawings of a history."""
_MAP_SIDE = 384
"""Width of a map at least, pixels."""
_CSS = """
.gallery img { image-rendering: pixelated; width: 100%; height: auto; }
"""
_COPY = """
(text) => {
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
"""
"""Copies also where a page may not use the clipboard: on another machine, without HTTPS."""


def play(
    trainer: Trainer,
    model: LitDoLa,
    writer: ImageWriter,
    host: str = "127.0.0.1",
    port: Port = 7860,
    max_images: PositiveInt = 8,
    max_prompt_length: PositiveInt = 2000,
    max_queue: PositiveInt = 16,
    output_dir: str = "outputs/play",
) -> None:
    """Show a page to try DoLa on: the same noise with DoLa and without it, side by side.

    Args:
        trainer: Device and precision.
        model: The model, and the settings that the page starts with.
        writer: Format and quality of files.
        host: Address to listen on: 127.0.0.1 is this machine alone, 0.0.0.0 all.
        port: Port to listen on.
        max_images: Maximum number of images per drawing.
        max_prompt_length: Maximum number of characters of a prompt.
        max_queue: Maximum number of drawings that wait or run; further ones are refused.
        output_dir: Folder for saved histories.

    Raises:
        UserError: If it cannot listen, or the model cannot be loaded.
    """
    require("gradio", "play", extra="play")
    require("matplotlib", "play", extra="play")
    if trainer.world_size > 1:
        raise UserError(
            str(trainer.world_size), "1: the page shares one model", setting="trainer.devices"
        )
    checkpoint = checked_checkpoint(model)
    check_port(host, port)
    folder = make_output_dir(output_dir)
    warn_if_open(host)
    name = name_of(checkpoint)
    device = trainer.strategy.root_device
    log(f"{name}: loading on {device}")
    pipeline = JanusPipeline.from_pretrained(device=device, **how_to_load(model, trainer))
    studio = Studio(
        pipeline,
        shared_settings(model, leave_out={"dola"}),
        Limits(max_images, max_prompt_length, max_queue),
        folder,
        writer.format,
        writer.quality,
    )
    try:
        app = make_app(studio, model, checkpoint)
        config = uvicorn.Config(app, host, port, log_level="warning", timeout_graceful_shutdown=3)
        server = _Server(config)
        server.ready = f"{name}: ready; open {address_of(host, port)}"
        with suppress(KeyboardInterrupt), stop_on_signals():
            server.run()
    finally:
        studio.close()
    log("stopped")


class _Server(uvicorn.Server):
    """Server that logs when it listens, and no traceback for the streams that its end cuts off."""

    ready = ""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        if self.started:
            log(self.ready)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """End the server."""
        getLogger("uvicorn.error").setLevel(CRITICAL)
        await super().shutdown(sockets)


def make_app(studio: Studio, model: LitDoLa, checkpoint: Checkpoint) -> FastAPI:
    """Return the playground as an application: its page, and saved histories."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(studio.drawn / "shown")  # copies of the images
    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def restrict_sources(
        request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await answer(request)
        response.headers["Content-Security-Policy"] = _ONLY_OURS
        return response

    app.mount(_SAVED, StaticFiles(directory=studio.output_dir, html=True))
    page = Page(studio, model, checkpoint).build()
    page.queue(default_concurrency_limit=None, api_open=False)  # the studio has its own queue
    font = ["system-ui", "sans-serif"]
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        page,
        path="",
        footer_links=[],
        allowed_paths=[str(studio.drawn)],
        ssr_mode=False,
        css=_CSS,
        theme=gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"]),
    )
    return mounted


class Page:
    """The page's components and their callbacks."""

    def __init__(self, studio: Studio, model: LitDoLa, checkpoint: Checkpoint) -> None:
        self.studio = studio
        self.model = model
        self.controls = ModelControls(model, checkpoint)
        self.name = name_of(checkpoint)

    def build(self) -> Any:
        """Return the page, a ``gradio.Blocks``."""
        with gr.Blocks(
            title=f"DoLa on {self.name}", analytics_enabled=False, delete_cache=(3600, 86400)
        ) as page:
            gr.Markdown(f"# DoLa on {self.name}\nThe same noise, without DoLa and with it.")
            self._history = gr.State([], delete_callback=self.studio.forget)  # of a visit
            self._shown = gr.State(None)
            self._selected = gr.State(0)
            with gr.Row():
                with gr.Column(scale=1, min_width=260):
                    asked = self._controls()
                with gr.Column(scale=3, min_width=320):
                    self._results()
            self._connect(asked)
        return page

    def _controls(self) -> list[Any]:
        """Return the components that a drawing depends on."""
        limits = self.studio.limits
        prompt = gr.Textbox(
            label="Prompt", lines=2, max_length=limits.max_prompt_length, elem_id="prompt",
            placeholder="a red circle above a blue square",
        )  # fmt: skip
        with gr.Row():
            self._draw = gr.Button("Draw", variant="primary", elem_id="draw", min_width=80)
            self._stop = gr.Button("Stop", elem_id="stop", min_width=80)
        settings = self.controls.build()
        seed = gr.Number(
            plain(self.model.hparams["seed"]), label="Seed", precision=0, elem_id="seed",
            minimum=0, maximum=2**32 - 1,
        )  # fmt: skip
        images = plain(min(self.model.parallel_size, limits.max_images, 4))
        number = gr.Slider(
            1, plain(limits.max_images), images, step=1, label="Images", elem_id="images",
            visible=limits.max_images > 1,
        )  # fmt: skip
        return [prompt, seed, number, *settings]

    def _results(self) -> None:
        self._status = gr.Markdown("", elem_id="status")
        with gr.Row():
            with gr.Column(min_width=240):
                self._without = _gallery("Without DoLa", "without")
            with gr.Column(min_width=240):
                self._with_dola = _gallery("With DoLa", "with-dola")
        with gr.Accordion("Where DoLa changed an image: click one", open=True):
            choices = [(label, name) for name, label in MAPS.items()]
            self._measure = gr.Radio(choices, value="changed", label="Map", elem_id="measure")
            self._map = gr.Image(
                label="Map", format="png", interactive=False, elem_id="map",
                buttons=["download", "fullscreen"], height=384,
            )  # fmt: skip
            self._told = gr.Markdown("", elem_id="told")
        with gr.Row():
            self._copy_command = gr.Button("Copy as command", elem_id="copy-command")
            self._copy_config = gr.Button("Copy as config", elem_id="copy-config")
        with gr.Accordion("What makes these images again", open=False):
            self._command = gr.Code(
                language="shell", label="Command", elem_id="command", wrap_lines=True
            )
            self._config = gr.Code(language="yaml", label="Config", elem_id="config")
        with gr.Accordion("History", open=True):
            self._past = gr.Radio([], label="Drawings of this visit", elem_id="past")
            self._save = gr.Button("Save as run folders", elem_id="save")
            self._saved = gr.Markdown("", elem_id="saved")

    def _connect(self, asked: list[Any]) -> None:
        images = [self._without, self._with_dola]
        drawing = [*images, self._shown, self._command, self._config]
        about_map = [self._map, self._told]
        gr.on(
            [self._draw.click, asked[0].submit], self.draw, [self._history, *asked],
            [*drawing, *about_map, self._status, self._history, self._past],
            api_visibility="private", show_progress_on=self._status,
            trigger_mode="once",
        )  # fmt: skip
        self._stop.click(self.stop, None, None, api_visibility="private")
        quick: dict[str, Any] = {"api_visibility": "private"}
        shows = [self._shown, self._selected, self._measure]
        self._with_dola.select(_place, None, self._selected, **quick).then(
            self.show_map, shows, about_map, **quick
        )
        self._measure.change(self.show_map, shows, about_map, **quick)
        recalled = [*drawing, *about_map]
        self._past.input(self.recall, [self._history, self._past], recalled, **quick)
        self._save.click(self.save, self._history, self._saved, **quick)
        copies = (self._copy_command, self._command), (self._copy_config, self._config)
        for button, text in copies:
            button.click(None, text, None, js=_COPY, api_visibility="private")

    def draw(
        self,
        request: gr.Request,
        history: list[Drawing],
        prompt: str,
        seed: float,
        images: float,
        *values: Any,
    ) -> Iterator[Any]:
        """Draw, showing images as their tokens come."""
        number = history[-1].number + 1 if history else 0
        told = "Drawing …"
        settings = self.controls.settings(values)
        wish = Wish(prompt, to_integer(images), to_integer(seed), settings)
        try:
            for now in self.studio.draw(wish, number, request.session_hash or ""):
                if isinstance(now, int):
                    yield {self._status: f"Waiting: {now} before this one."}
                elif isinstance(now, float):
                    told = f"Drawing … {100 * now:.0f} %"
                    yield {self._status: told}
                elif isinstance(now, Drawing):
                    history = [*history, now]
                    self.studio.forget(history[:-_MOST_KEPT])
                    yield self._all_of(history[-_MOST_KEPT:], now)
                else:
                    yield {
                        **dict(zip((self._without, self._with_dola), now)),
                        **self._no_map(),
                        self._shown: None,
                        self._status: told,
                    }
        except Stopped:
            yield {self._status: "Stopped."}
        except UserError as error:
            raise _shown_error(error) from error

    def stop(self, request: gr.Request) -> None:
        """Stop what this visitor draws."""
        self.studio.stop(request.session_hash or "")

    def _all_of(self, history: list[Drawing], drawing: Drawing) -> dict[Any, Any]:
        """Return what the page shows when a drawing is finished."""
        titles = [(each.title, each.number) for each in history]
        return {
            **self._of(drawing),
            self._history: history,
            self._past: gr.Radio(titles, value=drawing.number),
            self._status: "",
        }

    def _of(self, drawing: Drawing) -> dict[Any, Any]:
        """Return what the page shows of a drawing: its images are files as predict writes them."""
        return {
            self._without: [str(file) for file in drawing.without.files],
            self._with_dola: [str(file) for file in drawing.with_dola.files],
            self._shown: drawing,
            self._command: drawing.command,
            self._config: drawing.config,
            **self._no_map(),
        }

    def _no_map(self) -> dict[Any, Any]:
        return {self._map: None, self._told: ""}

    def show_map(self, drawing: Drawing | None, image: int, measure: str) -> tuple[Any, str]:
        """Show a map over the image that was clicked."""
        if drawing is None:
            return None, ""
        shown, told = drawing.map(min(image, drawing.wish.images - 1), measure)
        larger = max(_MAP_SIDE // shown.width, 1)
        return shown.resize((larger * shown.width, larger * shown.height), Resampling.NEAREST), told

    def recall(self, history: list[Drawing], number: int) -> dict[Any, Any]:
        """Show an earlier drawing."""
        return self._of(next(each for each in history if each.number == number))

    def save(self, history: list[Drawing]) -> str:
        """Save the history."""
        try:
            pages = self.studio.save(history)
        except UserError as error:
            raise _shown_error(error) from error
        root = self.studio.output_dir
        links = [
            f"- [{page.parents[1].name}]({_SAVED}/{page.relative_to(root).as_posix()})"
            for page in pages
        ]
        return "\n".join([f"Saved in `{pages[0].parents[2]}`; compare:", *links])


def _gallery(label: str, name: str) -> gr.Gallery:
    gr.Markdown(f"### {label}")  # Gradio's own label hides a corner of an image
    return gr.Gallery(
        label=label, show_label=False, columns=2, object_fit="contain", format="png", height="auto",
        allow_preview=False, interactive=False, elem_id=name, elem_classes="gallery",
        buttons=["download"],
    )  # fmt: skip


def _place(chosen: gr.SelectData) -> int:
    """Return which image was clicked."""
    return int(chosen.index)


def _shown_error(error: UserError) -> gr.Error:
    return gr.Error(str(error.in_python()), duration=None, print_exception=False)
