"""The table of tasks that the command line offers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from lit_dola.apps.limits import Limits
from lit_dola.callbacks.answer_writer import AnswerWriter
from lit_dola.callbacks.image_logger import ImageLogger
from lit_dola.callbacks.progress import RunProgress
from lit_dola.callbacks.rank_writer import RankWriter
from lit_dola.callbacks.run_writer import find_writer
from lit_dola.callbacks.writer import ImageWriter
from lit_dola.cli.parser import ENV_PREFIX
from lit_dola.data.datamodule import PromptDataModule
from lit_dola.data.items import ItemDataModule
from lit_dola.data.questions import QuestionDataModule
from lit_dola.errors import given_path
from lit_dola.evaluation import EvaluationTrainer
from lit_dola.tasks.answer import LitAnswer
from lit_dola.tasks.generate import LitDoLa
from lit_dola.tasks.numbers import Port
from lit_dola.tasks.rank import LitRank

EXIT_SKIPPED = 3
"""Exit code of a run that made everything except some prompts or images, which it lists."""


class TaskTrainer(EvaluationTrainer):
    """Lightning's trainer with a method for each task."""

    def answer(self, model: LitAnswer, datamodule: QuestionDataModule) -> None:
        """Answer questions about pictures.

        Args:
            model: The model and its settings.
            datamodule: The questions.

        Raises:
            UserError: If a question cannot be answered.
        """
        self.predict(model, datamodule=datamodule, return_predictions=False)

    def rank(self, model: LitRank, datamodule: ItemDataModule) -> None:
        """Rank labels for pictures, or the images of a run for their prompts.

        Args:
            model: The scorer and its settings.
            datamodule: What is to be ranked.

        Raises:
            UserError: If something cannot be ranked.
        """
        self.predict(model, datamodule=datamodule, return_predictions=False)

    def serve(
        self,
        model: LitDoLa,
        datamodule: PromptDataModule,
        host: Literal["127.0.0.1", "0.0.0.0", "::"] = "127.0.0.1",
        port: Port = 8000,
        max_images: PositiveInt = 8,
        max_prompt_length: PositiveInt = 2000,
        max_queue: PositiveInt = 64,
        max_wait: NonNegativeFloat = 0.05,
        stop_timeout: PositiveInt = 300,
        output_dir: str = "outputs/served",
    ) -> None:
        """Serve images to programs: ``POST /v1/images/generations``, as OpenAI has it.

        Clients send the token in the environment variable ``LIT_DOLA_API_KEY``, if it is set.

        Args:
            model: The model, and the settings that a request does not name.
            datamodule: Not used.
            host: Address to listen at: 127.0.0.1 is this machine alone, 0.0.0.0 and :: are all.
            port: Port to listen at.
            max_images: Images per request, at most.
            max_prompt_length: Characters of a prompt, at most.
            max_queue: Requests that wait or run, at most; the next one is told to try again later.
            max_wait: Seconds that a request waits for others, to share a batch with them.
            stop_timeout: Seconds for the last replies, after SIGINT or SIGTERM.
            output_dir: Where images go if a request has the ``response_format`` url.

        Raises:
            UserError: If it cannot listen, the model cannot be loaded, or a worker dies.
        """
        from lit_dola.apps.server import serve

        serve(
            model,
            self,
            Limits(max_images, max_prompt_length, max_queue),
            host=host,
            port=port,
            max_wait=max_wait,
            stop_timeout=stop_timeout,
            output_dir=given_path("output_dir", output_dir),
        )

    def play(
        self,
        model: LitDoLa,
        datamodule: PromptDataModule,
        host: str = "127.0.0.1",
        port: Port = 7860,
        max_images: PositiveInt = 8,
        max_prompt_length: PositiveInt = 2000,
        max_queue: PositiveInt = 16,
        output_dir: str = "outputs/play",
    ) -> None:
        """Show a page to try DoLa on: the same noise with DoLa and without it, side by side.

        Files have the format and the quality of ``writer``.

        Args:
            model: The model, and the settings that the page starts with.
            datamodule: Not used.
            host: Address to listen at: 127.0.0.1 is this machine alone, 0.0.0.0 all.
            port: Port to listen at.
            max_images: Images per drawing, at most.
            max_prompt_length: Characters of a prompt, at most.
            max_queue: Drawings that wait or run, at most; the next one is told to try again.
            output_dir: Where histories are saved.

        Raises:
            UserError: If it cannot listen, or the model cannot be loaded.
        """
        from lit_dola.apps.playground import play

        writer = find_writer(self)
        assert isinstance(writer, ImageWriter)
        play(
            model,
            self,
            Limits(max_images, max_prompt_length, max_queue),
            host=host,
            port=port,
            output_dir=given_path("output_dir", output_dir),
            format=writer.format,
            quality=writer.quality,
        )


class TrainerTask(NamedTuple):
    """A task that needs a model, data and a trainer: a method of :class:`TaskTrainer`."""

    model: type[LightningModule]
    data: type[LightningDataModule]
    callbacks: dict[str, type[Callback]]
    """Callbacks with settings of their own, by group."""
    linked: tuple[str, ...]
    """Settings of the model that the data module needs, too."""
    hidden: set[str]
    """Arguments of the method that the command line does not offer."""
    examples: str
    """Command lines, for the help."""
    makes_run: bool = True
    """Whether it makes one run of what its data are, so that it has ``--dry_run``."""
    reads_data: bool = True
    """Whether it reads the files that the data module names."""

    @property
    def groups(self) -> dict[str, type]:
        """Groups of settings that are not Lightning's own, and whose they are."""
        own = {"model": self.model, "data": self.data, **self.callbacks}
        return {**own, "progress": RunProgress}


_NOT_OFFERED = {"model", "dataloaders", "datamodule", "return_predictions", "ckpt_path"}
_IMAGES = TrainerTask(
    LitDoLa,
    PromptDataModule,
    {"writer": ImageWriter, "image_logger": ImageLogger},
    linked=("model_path", "roles", "negative_prompt", "parallel_size", "images_per_batch"),
    hidden=_NOT_OFFERED,
    examples="""
python main.py predict --config configs/dola.yaml
python main.py predict --config configs/dola.yaml --model.alpha 0.05 --writer.output_dir outputs/a
python main.py predict --config configs/dola.yaml --trainer.devices 4 --trainer.num_nodes 2
python main.py predict --config configs/demo.yaml    # the small Janus, on a CPU
""".strip(),
)
TASKS = {
    "predict": _IMAGES._replace(hidden={*_NOT_OFFERED, "weights_only"}),
    "answer": TrainerTask(
        LitAnswer,
        QuestionDataModule,
        {"writer": AnswerWriter},
        linked=("model_path", "roles", "system_prompt", "max_new_tokens", "questions_per_batch"),
        hidden=_NOT_OFFERED,
        examples="""
python main.py answer --config configs/answer.yaml --data.question_json questions.jsonl
python main.py answer --config configs/demo-answer.yaml    # the small Janus, on a CPU
""".strip(),
    ),
    "rank": TrainerTask(
        LitRank,
        ItemDataModule,
        {"writer": RankWriter},
        linked=("model_path", "scorer", "roles", "system_prompt"),
        hidden=_NOT_OFFERED,
        examples="""
python main.py rank --config configs/rank.yaml --data.item_json items.jsonl
python main.py rank --config configs/demo-rank.yaml    # the images of the demo, on a CPU
""".strip(),
    ),
    "evaluate": _IMAGES._replace(
        examples="""
python main.py evaluate --config configs/evaluate.yaml
python main.py evaluate --config configs/pope.yaml
""".strip()
    ),
    "play": _IMAGES._replace(
        makes_run=False,
        reads_data=False,
        examples="""
python main.py play --config configs/demo.yaml
python main.py play --config configs/dola.yaml --host 0.0.0.0 --port 7860
""".strip(),
    ),
    "serve": _IMAGES._replace(
        makes_run=False,
        reads_data=False,
        examples="""
python main.py serve --config configs/demo.yaml --port 8000
python main.py serve --config configs/dola.yaml --host 0.0.0.0 --trainer.devices 4
""".strip(),
    ),
}
"""The subcommands that need a model."""


def evaluated_task(args: Sequence[str], environment: Mapping[str, str]) -> TrainerTask:
    """Return the task that ``evaluate`` is about to run, whose settings its parser must know.

    It is named by ``--task``, by the key ``task`` of a configuration, or by the environment; what
    is wrong with any of them is reported when all settings are parsed.

    Args:
        args: The arguments of the command line.
        environment: The variables of the environment.
    """
    name = environment.get(f"{ENV_PREFIX}_EVALUATE__TASK", "predict")
    for option, value in _options(args):
        if option in ("--config", "-c"):
            name = _task_in(value) or name
    for option, value in _options(args):
        if option == "--task":
            name = value
    return TASKS.get(name, _IMAGES)._replace(makes_run=False)


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the options of a command line that have a value."""
    for place, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if equals:
            yield option, value
        elif place + 1 < len(args):
            yield option, args[place + 1]


def _task_in(path: str) -> str | None:
    """Return what a configuration calls ``task``; None if it does not, or cannot be read."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # reported when the configuration is parsed
    for part in (config, config.get("evaluate") if isinstance(config, dict) else None):
        if isinstance(part, dict) and isinstance(part.get("task"), str):
            return str(part["task"])
    return None
