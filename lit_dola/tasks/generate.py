"""Text-to-image generation with Janus and DoLa-static, one batch of images at a time."""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor

from lit_dola.data.requests import Failure, ImageRequest, RequestKey
from lit_dola.decoding.inspection import Inspection, inspect_tokens
from lit_dola.decoding.loop import NotFiniteError, OnStep, TokenGenerator, cfg_pair
from lit_dola.decoding.pool import token_generator
from lit_dola.decoding.prefill import Branches
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint, ModelFolder
from lit_dola.janus.loading import Backend, load_janus
from lit_dola.janus.model import ImageBackbone
from lit_dola.janus.vq import decode_pixels
from lit_dola.settings.numbers import GuidanceScale, NonNegativeFinite, Window
from lit_dola.tasks.decode import DecodingModule
from lit_dola.tasks.preview import ImageStep, OnImageStep


class GeneratedImage(NamedTuple):
    """One image, on the CPU."""

    request: ImageRequest
    tokens: Tensor
    """Int32 ``(num_image_tokens,)``."""
    pixels: Tensor
    """Uint8 ``(3, height, width)``."""
    forwards: int | None = None
    """Passes that its tokens took, with speculative decoding; else None."""
    at_once: int | None = None
    """Images decoded at once, if a batch was divided for lack of memory; else None."""
    inspection: Inspection | None = None
    """Figures for every step, if the image was selected for inspection."""
    logprobs: Tensor | None = None
    """Log-probabilities of the tokens, float32 ``(2, num_image_tokens)``, as of
    :attr:`lit_dola.decoding.step.Drawn.logprobs`, if they were measured."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what a file of its tokens holds: those, and log-probabilities if there are any."""
        logprobs = () if self.logprobs is None else self.logprobs.numpy()
        names = ("logprob", "sampled_logprob")
        return {"tokens": self.tokens.numpy(), **dict(zip(names, logprobs))}


class GeneratedImages(NamedTuple):
    """The result of one predict step."""

    images: list[GeneratedImage]
    failures: list[Failure]


class LitDoLa(DecodingModule):
    """Generates images with Janus, its token distribution sharpened by DoLa-static.

    Args:
        speculative: Window of speculative Jacobi decoding: tokens per pass and image, e.g. 16. The
            tokens are the same, from fewer passes; it pays for a few images at a time. A complete
            image makes room for the next one. null: off.
        negative_prompt: Text of the unconditional branch, which guidance leads away from; null: its
            text is padded away, as in Janus itself.
        parallel_size: Images per prompt.
        images_per_batch: Images per batch, of any prompts; each uses two rows of the language
            model, without guidance one. auto: as many as the GPU's memory allows, at most 128 rows;
            32 rows on a CPU.
        backend: Package whose code runs the model: transformers, or deepseek (its janus package).
        inspect: Images to inspect step by step, in the form ``[[prompt, image], ...]``: the size of
            the head set, how far the final and middle layers diverge, the entropy before and after
            DoLa.
        settings: Settings of :class:`DecodingModule`.
    """

    loading = (*DecodingModule.loading, "backend")
    shared = (
        *DecodingModule.shared, "backend", "negative_prompt", "parallel_size", "images_per_batch"
    )  # fmt: skip
    texts = ("negative_prompt",)
    files = ("lens",)
    """Settings that name files, which no client of a server may choose."""
    unrecorded = ("parallel_size", "inspect")
    of_call = ("parallel_size", "seed", "inspect")
    """Settings of each call of a pipeline, even where calls share all others."""
    rounding = ("images_per_batch", "compile", "speculative")
    janus: ImageBackbone
    """The model, once loaded."""

    def __init__(
        self,
        *,
        speculative: Window | None = None,
        negative_prompt: str | None = None,
        parallel_size: PositiveInt = 8,
        images_per_batch: PositiveInt | Literal["auto"] = "auto",
        backend: Backend = "transformers",
        inspect: list[tuple[NonNegativeInt, NonNegativeInt]] | None = None,
        cfg_weight: GuidanceScale = 5.0,
        temperature: NonNegativeFinite = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(cfg_weight=cfg_weight, temperature=temperature, **settings)
        self.backend = backend
        self.speculative = speculative
        self.parallel_size = parallel_size
        self.images_per_batch = images_per_batch
        self.inspect = {RequestKey(*key) for key in inspect or ()}
        self.on_image_step: OnImageStep | None = None
        """Called after each decoding step with the images so far."""

    def check(self, model: ModelFolder) -> None:
        """Check the settings against the model."""
        if self.inspect and not self.dola:
            raise UserError(
                "DoLa is off", "model.dola true", setting="model.inspect", mentions=("model.dola",)
            )
        super().check(model)

    def load(self, checkpoint: Checkpoint, **options: Any) -> ImageBackbone:
        """Load the language model, the image head and the VQ decoder."""
        return load_janus(checkpoint, backend=self.backend, **options)

    @property
    def max_new_tokens(self) -> int:
        """Tokens per image."""
        return self.janus.num_image_tokens

    def check_sharded(self) -> None:
        """Check the settings of a run whose ranks share one model."""
        if self.inspect:
            raise UserError("a sharded model cannot be inspected", "null", setting="model.inspect")
        if self.speculative:  # ranks would run different numbers of passes
            raise UserError("a sharded model decodes in step", "null", setting="model.speculative")
        super().check_sharded()

    @property
    def refills(self) -> bool:
        """Return whether images advance at their own pace."""
        return self.speculative is not None

    def make_generator(self) -> TokenGenerator:
        """Return the token loop of the image head."""
        return token_generator(
            self.janus,
            self.janus.image_head,
            self.scoring,
            window=self.speculative,
            places=self.places,
            **self.generator_options(),
        )

    def trial_prompt(self) -> Branches:
        """Return the branches of the first prompt."""
        first = self.plan.requests[0]
        assert isinstance(first, ImageRequest)
        return self._branches(first)

    def predict_step(self, batch: list[ImageRequest], batch_idx: int) -> GeneratedImages:
        """Generate a batch of images, as many at once as fit into memory."""
        parts = self.run_in_parts(batch, self._generate)
        return GeneratedImages(
            [self._inspected(image) for part in parts for image in part.images],
            [failure for part in parts for failure in part.failures],
        )

    def _generate(self, requests: list[ImageRequest]) -> GeneratedImages:
        """Generate a few images; those with infinite logits or pixels become failures."""
        prompts = [*map(self._branches, requests)]
        keys = [request.key for request in requests]
        not_finite: dict[int, str] = {}
        try:
            with self.inference_mode():
                tokens = self.generator(
                    prompts, keys, self._on_step(requests), seeds=[*map(self._seed_of, requests)]
                )
        except NotFiniteError as error:
            tokens = error.tokens
            for place, step in error.steps.items():
                not_finite[place] = f"the model's logits are NaN or infinite at step {step}"
        drawn = [place for place in range(len(requests)) if place not in not_finite]
        forwards, logprobs = self.generator.forwards, self.generator.logprobs
        logprobs = None if logprobs is None else logprobs.cpu()
        images = []
        for place, pixels in zip(drawn, decode_pixels(self.janus, tokens[drawn])):
            if pixels is None:
                not_finite[place] = "the VQ decoder's pixels are NaN or infinite"
            else:
                images.append(
                    GeneratedImage(
                        requests[place],
                        tokens[place].to("cpu", torch.int32),
                        pixels[0],
                        None if forwards is None else int(forwards[place]),
                        self.at_once,
                        logprobs=None if logprobs is None else logprobs[:, place],
                    )
                )
            self.call_on_step(self.max_new_tokens)
        failures = [_failure(requests[place], not_finite[place]) for place in sorted(not_finite)]
        return GeneratedImages(images, failures)

    def _branches(self, request: ImageRequest) -> Branches:
        """Return the branches that are decoded."""
        return self._both_branches(request)[: self.branches]

    def _both_branches(self, request: ImageRequest) -> Branches:
        negative = request.negative.input_ids if request.negative else None
        return cfg_pair(request.input_ids, self.janus.pad_token_id, negative)

    def _seed_of(self, request: ImageRequest) -> int:
        return self.scoring.seed if request.seed is None else request.seed

    def _on_step(self, requests: list[ImageRequest]) -> OnStep:
        """Return what reports the steps of a batch."""
        count = self.max_new_tokens

        def report(step: int, tokens: Tensor) -> None:
            self.call_on_step(step)
            if self.on_image_step:
                self.on_image_step(ImageStep(requests, step, count, tokens, self.janus))

        return report

    def _inspected(self, image: GeneratedImage) -> GeneratedImage:
        """Return an image with its inspection, if it is selected for one."""
        layer, request = self.middle_layer(self.plan.checkpoint), image.request
        if request.key not in self.inspect or layer is None:
            return image
        inspection = inspect_tokens(
            self.janus,
            replace(self.scoring, seed=self._seed_of(request)),
            layer,
            self._both_branches(request),
            image.tokens,
            request.key,
            self.readout(),
        )
        return image._replace(inspection=inspection)


def _failure(request: ImageRequest, reason: str) -> Failure:
    return Failure.of(
        request,
        f"image {request.image_index}: {reason}; expected finite ones, for which"
        " --trainer.precision bf16-true or 32-true has more range than 16-true",
    )
