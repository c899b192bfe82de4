"""Janus with DoLa-static from Python: load once, then generate any number of times."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

from lightning.pytorch import Trainer

from lit_dola.callbacks.progress import RunProgress
from lit_dola.callbacks.quiet import quiet_lightning
from lit_dola.data.base import RequestDataModule
from lit_dola.data.requests import RequestKey
from lit_dola.errors import UserError
from lit_dola.pipeline.arguments import (
    PictureLike,
    check_callback,
    check_pictures,
    check_texts,
    in_python,
    name_of,
    pair,
    refuse_strangers,
    seeds_of_images,
)
from lit_dola.pipeline.in_memory import ItemsInMemory, PromptsInMemory, QuestionsInMemory
from lit_dola.pipeline.loaded import PRECISIONS, LoadedJanus
from lit_dola.pipeline.shared_batches import CallsInMemory, ImageCall, generations_of, sound
from lit_dola.reports.generation import Generation
from lit_dola.runs.answers import AnswerRecord
from lit_dola.runs.ranks import RankRecord
from lit_dola.runs.records import RunSettings
from lit_dola.settings.declared import takes_settings_of
from lit_dola.tasks.answer import Answers, LitAnswer
from lit_dola.tasks.base import JanusModule
from lit_dola.tasks.generate import LitDoLa
from lit_dola.tasks.preview import ImageStep, OnImageStep
from lit_dola.tasks.rank import LitRank, Rankings

JanusScorer = Literal["likelihood", "yes_no"]


class JanusPipeline(LoadedJanus):
    """A loaded Janus that generates images with or without DoLa-static.

    Args:
        janus: The model, on its device.
        checkpoint: The checkpoint that it was loaded from.
        roles: Role names in the prompt's conversation.
        quantize: How its weights are quantized, if they are.

    Example:
        >>> pipeline = JanusPipeline.from_pretrained("checkpoints/shapes-janus")
        >>> pipeline.generate("a red circle", parallel_size=2).images[0].save("circle.png")
    """

    @takes_settings_of(LitDoLa, leave_out=LitDoLa.loading)
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        dola: bool = True,
        seed: int | Sequence[int] = 0,
        inspect: bool = False,
        logprobs: bool = False,
        callback_on_step: Callable[[ImageStep], None] | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> Generation:
        """Generate the images of ``main.py predict`` for the same prompts and settings.

        The pipeline itself can be called in the same way. Settings that are not given are as the
        checkpoint recommends, see :attr:`recommended`, or else as the signature says.

        Args:
            prompts: One or more prompts.
            dola: Use DoLa; without it every step is exactly Janus' own.
            seed: An image depends only on its seed and on the indices of its prompt and of itself.
                A list has one seed per image, all images of the first prompt first, and as many
                images are generated as it has seeds.
            inspect: Measure where DoLa changed each image: see :attr:`Generation.inspections` and
                :meth:`Generation.figure`.
            logprobs: Measure the log-probability of each token: see :attr:`Generation.logprobs`.
            callback_on_step: Called after each decoding step with the images so far, which it can
                decode; an exception that it raises ends the call.
            progress: Show progress, in a terminal or a notebook.
            settings: Those of :class:`lit_dola.LitDoLa`.

        Returns:
            Images, tokens and settings; it can be saved as a run.

        Raises:
            UserError: If a setting or prompt is invalid, or the model's logits are not finite.
        """
        refuse_strangers(settings, LitDoLa.loading, "generate")
        check_callback(callback_on_step)
        given, seeds = check_texts("prompts", prompts), None
        if isinstance(seed, Sequence):
            size = settings.get("parallel_size")
            seeds, settings["parallel_size"] = seeds_of_images(seed, len(given), size)
        fixed = {
            "model_path": self.checkpoint.name, "roles": self.roles, "dola": dola,
            "seed": seeds[0] if seeds else seed,
        }  # fmt: skip
        model = self._image_model({**settings, **fixed}, callback_on_step)
        if inspect:
            size = model.parallel_size
            model.inspect = {RequestKey(*divmod(place, size)) for place in range(len(given) * size)}
        model.logprobs = logprobs
        data = PromptsInMemory(given, self.checkpoint, self.encoder, seeds)
        parts, made_with = self._run(model, data, progress)
        (made,) = generations_of(parts, made_with, [0] * len(data.plan.requests))
        return made

    __call__ = generate

    @takes_settings_of(LitDoLa, leave_out={*LitDoLa.loading, *LitDoLa.of_call})
    def generate_each(
        self,
        calls: Sequence[ImageCall],
        *,
        logprobs: bool = False,
        callback_on_step: Callable[[ImageStep], None] | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> list[Generation]:
        """Run several calls in the same batches: they share all settings but prompt and seed.

        Args:
            calls: Prompt, number of images and seed of each call.
            logprobs: As in :meth:`generate`.
            callback_on_step: As in :meth:`generate`; a step's ``calls`` has the call of each image.
            progress: Show progress, in a terminal or a notebook.
            settings: Those of :class:`lit_dola.LitDoLa`.

        Returns:
            The generation of each call; in float32 exactly that of :meth:`generate`, in lower
            precision other images in a batch change the rounding.

        Raises:
            UserError: As :meth:`generate`; one bad call ends all.

        Example:
            >>> calls = [ImageCall("a red circle", 2, seed=1), ImageCall("a blue square")]
            >>> circles, square = pipeline.generate_each(calls, alpha=0.02)
        """
        refuse_strangers(settings, LitDoLa.loading, "generate_each")
        check_callback(callback_on_step)
        data = CallsInMemory(calls, self.checkpoint, self.encoder)
        model = self._image_model({**settings, **self._fixed}, data.with_calls(callback_on_step))
        model.logprobs = logprobs
        parts, made_with = self._run(model, data, progress)
        return generations_of(parts, made_with, data.call_of)

    def _image_model(
        self, settings: Mapping[str, Any], on_image_step: OnImageStep | None
    ) -> LitDoLa:
        """Return the task with checked settings, on the model that is loaded."""
        model = LitDoLa.checked({**self.recommended, **settings})
        model.janus = self.janus
        model.on_image_step = on_image_step
        return model

    @takes_settings_of(LitAnswer, leave_out=LitDoLa.loading)
    def answer(
        self,
        images: PictureLike | Sequence[PictureLike | Sequence[PictureLike]],
        questions: str | Sequence[str],
        *,
        logprobs: bool = False,
        progress: bool = True,
        **settings: Any,
    ) -> list[AnswerRecord]:
        """Answer questions about pictures, as ``main.py answer`` does.

        Args:
            images: A picture, as a path or an image of Pillow, or a list with one per question. A
                list in the list is several pictures of one question. One picture can have several
                questions, and one question can be asked about several pictures.
            questions: One or more questions.
            logprobs: Measure the log-probability of each token: see
                :attr:`lit_dola.runs.answers.AnswerRecord.logprobs`.
            progress: Show progress, in a terminal or a notebook.
            settings: Those of :class:`lit_dola.tasks.answer.LitAnswer`.

        Returns:
            One record per question; its ``answer`` is the text.

        Raises:
            UserError: If an input is invalid, or the model's logits are not finite.

        Example:
            >>> pipeline.answer("photo.jpg", "What is in the image?", max_new_tokens=64)[0].answer
        """
        refuse_strangers(settings, LitDoLa.loading, "answer")
        pairs = pair(check_pictures(images), check_texts("questions", questions))
        model = LitAnswer.checked({**settings, **self._fixed})
        model.janus, model.logprobs = self.understanding, logprobs
        data = QuestionsInMemory(pairs, self.checkpoint)
        parts, made_with = self._run(model, data, progress)
        found = [it for part in cast(list[Answers], parts) for it in sound(part).answers]
        records = [AnswerRecord.of(*answer, made_with.with_file(), name_of) for answer in found]
        return sorted(records, key=lambda record: record.key)

    @takes_settings_of(LitRank, leave_out=LitDoLa.loading)
    def rank(
        self,
        images: PictureLike | Sequence[PictureLike],
        labels: str | Sequence[str],
        *,
        scorer: JanusScorer = "likelihood",
        progress: bool = True,
        **settings: Any,
    ) -> list[RankRecord]:
        """Rank labels for each picture, or pictures for one text, as ``main.py rank`` does.

        Args:
            images: A picture, as a path or an image of Pillow, or a list.
            labels: A list of texts, which is ranked for each picture; or one text, for which the
                pictures are ranked.
            scorer: likelihood or yes_no; ``main.py rank`` can also load a SigLIP.
            progress: Show progress, in a terminal or a notebook.
            settings: Those of :class:`lit_dola.tasks.rank.LitRank`.

        Returns:
            One record per picture, or a single one; ``order`` has the places of the labels, or of
            the pictures, best first, and ``scores`` has their scores.

        Raises:
            UserError: If an input is invalid, or the model's logits are not finite.

        Example:
            >>> made = pipeline("a red circle", parallel_size=4)
            >>> (ranking,) = pipeline.rank(made.images, "a red circle")
            >>> best = made.images[ranking.order[0]]
        """
        refuse_strangers(settings, LitDoLa.loading, "rank")
        if scorer not in get_args(JanusScorer):
            raise UserError(f"{scorer!r}", "'likelihood' or 'yes_no'", setting="scorer")
        pictures = [picture for entry in check_pictures(images) for picture in entry]
        one_text = isinstance(labels, str)
        pairs = [(tuple(pictures), labels)] if one_text else [((it,), labels) for it in pictures]
        model = LitRank.checked({**settings, "scorer": scorer, **self._fixed})
        model.janus = self.understanding
        parts, made_with = self._run(model, ItemsInMemory(pairs, self.checkpoint), progress)
        found = [it for part in cast(list[Rankings], parts) for it in sound(part).rankings]
        return [RankRecord.of(*ranking, made_with.with_file(), name_of) for ranking in found]

    @property
    def _fixed(self) -> dict[str, Any]:
        return {"model_path": self.checkpoint.name, "roles": self.roles}

    def _run(
        self, model: JanusModule, data: RequestDataModule, progress: bool
    ) -> tuple[list[Any], RunSettings]:
        """Run a task; return the results of its steps, and every setting that shaped them."""
        on_cpu = self.device.type == "cpu"
        with quiet_lightning(), in_python():
            trainer = Trainer(
                accelerator="cpu" if on_cpu else "gpu",
                devices=1 if on_cpu else [self.device.index or 0],
                precision=PRECISIONS[self.weight.dtype],
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=progress,
                callbacks=[RunProgress()] if progress else [],
            )
            results = trainer.predict(model, datamodule=data)
        settings = model.record_settings(data.plan, trainer.precision)
        return results or [], RunSettings(settings, model.batching())
