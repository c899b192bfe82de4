"""Scorers of images for ``evaluate``: by a CLIP, by pyiqa, by a SigLIP, and by a Janus.

Each is a class whose objects take an image and the metadata of its entry, with the prompt under
``prompt``. Its model is loaded when the first image is scored. In a configuration:

    scorer:
      class_path: lit_dola.evaluation.scorers.ClipScore
      init_args: {model: openai/clip-vit-large-patch14}
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_dola.data.questions import question_encoder
from lit_dola.decoding.likelihood import TextScorer
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import load_understanding
from lit_dola.janus.pixels import PixelProcessor
from lit_dola.judges.judges import JanusJudge, first_tokens
from lit_dola.judges.siglip import Siglip, SiglipCheckpoint, note_if_cut
from lit_dola.messages import first_line
from lit_dola.settings.checks import require
from lit_dola.tasks.answer import LitAnswer

Model = TypeVar("Model")
QUESTION = "Does this image show {prompt}?"
_SAME = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
"""Answers that mean the same."""


class ModelScorer:
    """Base of the scorers.

    Args:
        model: A local folder, or a name on the Hugging Face hub.
        device: Where the model runs; auto: a GPU if there is one.
    """

    quantity = "Percent right"
    """Name of a score times 100 in the report."""
    note = ""
    """Further note in the report."""

    def __init__(self, model: str, device: str = "auto") -> None:
        self.model_path = model
        on_gpu = device == "auto" and torch.cuda.is_available()
        self.device = torch.device("cuda" if on_gpu else "cpu" if device == "auto" else device)

    def __call__(self, image: Image.Image, metadata: Mapping[str, Any]) -> float:
        """Score an image.

        Args:
            image: RGB.
            metadata: The entry of its prompt, and the ``prompt``.
        """
        raise NotImplementedError


class ClipScorer(ModelScorer):
    """Base of the scorers by a CLIP.

    Args:
        model: A CLIP in transformers' layout, as a folder or a name on the hub.
        device: As :class:`ModelScorer`.
    """

    def __init__(self, model: str = "openai/clip-vit-large-patch14", device: str = "auto") -> None:
        super().__init__(model, device)
        self._has_cut = False

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """Transformers' model and processor."""
        from transformers import CLIPModel, CLIPProcessor

        def load() -> tuple[Any, Any]:
            model = CLIPModel.from_pretrained(self.model_path).to(self.device).eval()
            return model, CLIPProcessor.from_pretrained(self.model_path)

        return _loaded(self.model_path, load)

    @torch.inference_mode()
    def cosines(self, image: Image.Image, texts: Sequence[str]) -> Tensor:
        """Return the cosine of an image and each text, ``(texts,)``; long ones are cut."""
        model, processor = self.parts
        length = int(model.config.text_config.max_position_embeddings)
        self._has_cut = self._has_cut or any(
            note_if_cut(processor.tokenizer, text, length) for text in texts
        )
        inputs = processor(
            text=[*texts], images=image, return_tensors="pt", padding=True, truncation=True,
            max_length=length,
        )  # fmt: skip
        output = model(**inputs.to(self.device))
        found: Tensor = output.logits_per_image[0] / model.logit_scale.exp()
        return found


class ClipScore(ClipScorer):
    """CLIP score (Hessel et al. 2021): the cosine of image and prompt, at least 0.

    As torchmetrics' ``CLIPScore``, which as of 1.9 does not work with transformers 5.

    Args:
        model: As :class:`ClipScorer`.
        device: As :class:`ModelScorer`.
    """

    quantity = "CLIP score, 100 times the cosine"

    def __call__(self, image: Image.Image, metadata: Mapping[str, Any]) -> float:
        """See :class:`ModelScorer`."""
        return float(self.cosines(image, [metadata["prompt"]]).clamp(min=0))


class ClipIqa(ClipScorer):
    """CLIP-IQA (Wang et al. 2023): whether an image is rather a good photo than a bad one.

    Args:
        model: As :class:`ClipScorer`.
        device: As :class:`ModelScorer`.
    """

    quantity = "CLIP-IQA, percent"

    def __call__(self, image: Image.Image, metadata: Mapping[str, Any]) -> float:
        """See :class:`ModelScorer`."""
        cosines = self.cosines(image, ["Good photo.", "Bad photo."])
        return float((100 * cosines).softmax(dim=0)[0])


class Pyiqa(ModelScorer):
    """A metric of image quality without a reference, by the package pyiqa, such as ``musiq``.

    Args:
        metric: Its name in ``pyiqa.list_models("NR")``.
        scale: What its values are divided by, so that they lie between 0 and 1.
        device: As :class:`ModelScorer`.
    """

    def __init__(self, metric: str = "musiq", scale: float = 100.0, device: str = "auto") -> None:
        super().__init__(metric, device)
        self.scale = scale
        self.quantity = f"{metric}, times {100 / scale:g}"

    @cached_property
    def metric(self) -> Any:
        """Pyiqa's own metric."""
        require("pyiqa", "scorer", extra="pyiqa")
        import pyiqa

        return _loaded(
            self.model_path, lambda: pyiqa.create_metric(self.model_path, device=self.device)
        )

    def __call__(self, image: Image.Image, metadata: Mapping[str, Any]) -> float:
        """See :class:`ModelScorer`."""
        pixels = _pixels(image)[None].float().to(self.device) / 255
        return float(self.metric(pixels)) / self.scale


class SiglipScore(ModelScorer):
    """The probability of a SigLIP that an image and its prompt belong together.

    Args:
        model: A SigLIP or SigLIP 2 in transformers' layout, as a folder or a name on the hub.
        device: As :class:`ModelScorer`.
    """

    quantity = "SigLIP's probability of a match, percent"

    def __init__(self, model: str = "checkpoints/shapes-siglip", device: str = "auto") -> None:
        super().__init__(model, device)

    @cached_property
    def siglip(self) -> Siglip:
        """The model."""
        checkpoint = SiglipCheckpoint.open(self.model_path)
        return Siglip(checkpoint, torch.float32, self.device)

    @torch.inference_mode()
    def __call__(self, image: Image.Image, metadata: Mapping[str, Any]) -> float:
        """See :class:`ModelScorer`."""
        picture = self.siglip.embed_picture(image, None)
        text = self.siglip.embed_text(metadata["prompt"])
        return float(self.siglip.logits(picture, text[None]).sigmoid())


class SoftTifa(ModelScorer):
    """Asks a Janus about the image, in the manner of GenEval 2's Soft-TIFA (Kamath et al. 2025).

    The score of a question is the probability of its right answer, and that of an image the mean
    over its questions: those of ``vqa_list``, pairs of a question and its answer, or else one with
    the prompt.

    Args:
        model: A Janus, as a folder or a name on the hub.
        mean: geometric, for whole prompts, or arithmetic, for single facts.
        question: What is asked where an entry has no ``vqa_list``; the right answer is yes.
        device: As :class:`ModelScorer`.
    """

    quantity = "Soft-TIFA by Janus, percent"
    note = (
        "These scores are by a Janus of images that a Janus has made, so they are not independent:"
        " it may like what it draws."
    )

    def __init__(
        self,
        model: str = "checkpoints/shapes-janus",
        mean: Literal["geometric", "arithmetic"] = "geometric",
        question: str = QUESTION,
        device: str = "auto",
    ) -> None:
        super().__init__(model, device)
        self.mean = mean
        self.question = question

    @cached_property
    def judge(self) -> JanusJudge:
        """The model, and what it needs to be asked."""
        checkpoint = Checkpoint.open(self.model_path)
        task = LitAnswer(dola=False)
        encoder = question_encoder(checkpoint, task.hparams, note=False)
        janus = load_understanding(
            checkpoint, pad_token_id=encoder.pad_token_id, device=self.device
        )
        pixels = PixelProcessor.of_checkpoint(checkpoint, task.preprocess)
        scorer = TextScorer(janus, janus.text_head, task.scoring, layer=None)
        return JanusJudge(janus, scorer, encoder, pixels, self.question)

    @torch.inference_mode()
    def __call__(self, image: Image.Image, metadata: Mapping[str, Any]) -> float:
        """See :class:`ModelScorer`."""
        embeddings = self.judge.janus.embed_picture(self.judge.pixels(image))
        asked = questions_of(metadata, self.question)
        found = torch.stack([self._log_probability(*pair, embeddings) for pair in asked])
        return float(found.mean().exp() if self.mean == "geometric" else found.exp().mean())

    def _log_probability(self, question: str, answer: str, embeddings: Tensor) -> Tensor:
        """Return the log-probability that the answer begins with the right token."""
        judge = self.judge
        log_probs: Tensor
        (log_probs,) = judge.scorer.next_log_probs((judge.prompt(question),), embeddings)
        words = {answer.strip(), _SAME.get(answer.strip().lower(), answer.strip())}
        spelt = [form for word in words for form in (word, word.lower(), word.capitalize())]
        both = [text for form in dict.fromkeys(spelt) for text in (form, f" {form}")]
        return log_probs[first_tokens(judge.encoder.encode_text, both)].logsumexp(dim=0)


def questions_of(metadata: Mapping[str, Any], question: str) -> list[tuple[str, str]]:
    """Return what is to be asked about an image, and the right answers.

    Args:
        metadata: The entry of its prompt, and the ``prompt``.
        question: What is asked where the entry has no ``vqa_list``, with ``{prompt}`` in it.
    """
    pairs = metadata.get("vqa_list")
    if not pairs:
        return [(question.replace("{prompt}", metadata["prompt"].rstrip(".")), "yes")]
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(it, str) for it in pair)
        for pair in pairs
    ):
        raise UserError(f"vqa_list is {pairs!r:.60}", "pairs of a question and its answer")
    return [(asked, answer) for asked, answer in pairs]


def _pixels(image: Image.Image) -> Tensor:
    """Return an image as uint8 ``(3, height, width)``."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _loaded(name: str, load: Callable[[], Model]) -> Model:
    try:
        return load()
    except Exception as error:  # other packages raise any exception for a missing model
        raise UserError(
            f"{name}: cannot be loaded: {first_line(error)}", setting="scorer"
        ) from error
