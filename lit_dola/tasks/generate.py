"""Text-to-image generation with Janus and DoLa-static, one batch of images at a time."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from logging import getLogger
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeInt,
    PositiveInt,
)
from torch import Tensor

from lit_dola.data.base import shards_the_model
from lit_dola.data.requests import Failure, ImageKey, ImageRequest
from lit_dola.decoding.guidance import ApcPolicy
from lit_dola.decoding.inspection import Inspection, inspect_tokens
from lit_dola.decoding.jacobi import token_generator
from lit_dola.decoding.loop import NotFiniteError, OnStep, TokenGenerator, cfg_pair
from lit_dola.decoding.prefill import Branches
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint, ModelFolder
from lit_dola.janus.loading import Backend, load_janus
from lit_dola.janus.model import ImageBackbone
from lit_dola.janus.quantization import Quantization
from lit_dola.janus.tokenizer import Roles
from lit_dola.janus.vq import decode_pixels
from lit_dola.tasks.base import JanusModule
from lit_dola.tasks.numbers import Finite, Fraction, PositiveFinite, Seed, Window
from lit_dola.tasks.preview import ImageStep, OnImageStep

_log = getLogger(__name__)


class GeneratedImages(NamedTuple):
    """The result of one predict step, on the CPU."""

    requests: list[ImageRequest]
    """The requests that succeeded."""
    tokens: Tensor
    """Int32 ``(images, num_image_tokens)``."""
    pixels: Tensor
    """Uint8 ``(images, 3, height, width)``."""
    failures: list[Failure]
    """The requests that failed."""
    forwards: list[int | None]
    """Passes that each image's tokens took, with speculative decoding; else None."""
    at_once: list[int | None]
    """Images decoded at once, if a batch was divided for want of memory; else None."""
    inspections: Mapping[int, Inspection] = MappingProxyType({})
    """Inspections of selected images, by index in ``requests``."""


class LitDoLa(JanusModule):
    """Generates images with Janus, its token distribution sharpened by DoLa-static.

    Args:
        model_path: Checkpoint: a local folder, a name on the Hugging Face hub, or one of
            Janus-1.3B, Janus-Pro-1B, Janus-Pro-7B. DeepSeek's layout and transformers' both load.
        dola: Whether to use DoLa; without it every step is exactly Janus' own.
        alpha: Threshold of the head set (DoLa's relative top): tokens with at least ``alpha`` times
            the probability of the most probable token may be drawn; 0: every token may be.
        strength: How much of the middle layer is subtracted: 1 is DoLa, 0 leaves the baseline's
            distribution on the head set; with alpha 0, too, it is the baseline itself.
        layer_ratio: Relative depth of the middle layer (DoLa's premature layer) that the final
            layer is contrasted with.
        layer: Index of the middle layer in ``hidden_states`` (0 is the embedding); overrides
            ``layer_ratio``.
        mid_norm: Whether to apply the model's final norm to the middle layer first, as a logit lens
            does; DoLa itself does not.
        apc: Which tokens may be drawn when the head sets of the conditional and unconditional
            branch differ: cond, intersection, union, or per_branch (the old script's masking).
        cfg_weight: Guidance scale of classifier-free guidance; 1 is no guidance.
        temperature: Divides the scores before a token is drawn; 0 is greedy.
        top_k: Draw from the k most probable tokens only.
        top_p: Draw from the smallest set of most probable tokens with at least this mass.
        min_p: Draw from tokens with at least this share of the top probability (min-p sampling),
            after guidance and temperature.
        entropy_temperature: ``[span, scale, floor]``: multiplies the temperature by
            ``span * exp(-entropy / scale) + floor``, with the entropy of the scores in nats
            (arXiv 2510.09012; its authors use [2.5, 3, 0.6]).
        speculative: Window of speculative Jacobi decoding: tokens per pass and image, as 16. The
            tokens are the same, from fewer passes; it pays for a few images at a time. null: off.
        negative_prompt: Text of the unconditional branch, which guidance leads away from; null: its
            text is padded away, as in Janus itself.
        parallel_size: Images per prompt.
        images_per_batch: Images per batch, of any prompts; each uses two rows of the language
            model. auto: as many as the GPU's memory allows, at most 64; 16 on a CPU.
        seed: An image depends only on the seed, its prompt's index in the file and its own index;
            not on its batch, the number of devices or the order.
        roles: Role names in the prompt's conversation: pro (<|User|>), base (User), or auto: from
            the checkpoint's chat template, else from the checkpoint's name.
        backend: Package whose code runs the model: transformers, or deepseek (its janus package).
        compile: Whether to compile the decoding step, with CUDA graphs on a GPU; auto: on a GPU.
        quantize: Store the weights of the language model and the image head in fewer bits, using
            torchao: fewer bytes to store and to read per step, and different images. int8wo and
            float8wo: 8 bits, a scale per output channel; int4wo: 4 bits, a scale per 32 weights.
        inspect: Images to inspect step by step, as ``[[prompt, image], ...]``: the size of the head
            set, how far the final and middle layers diverge, the entropy before and after DoLa.
    """

    shared = (
        *JanusModule.shared, "backend", "negative_prompt", "parallel_size", "images_per_batch"
    )  # fmt: skip
    janus: ImageBackbone
    """The model, once it is loaded."""

    def __init__(
        self,
        model_path: str = "deepseek-ai/Janus-Pro-7B",
        dola: bool = True,
        alpha: ClosedUnitInterval = 0.1,
        strength: ClosedUnitInterval = 1.0,
        layer_ratio: ClosedUnitInterval = 0.8,
        layer: PositiveInt | None = None,
        mid_norm: bool = False,
        apc: ApcPolicy = "cond",
        cfg_weight: Finite = 5.0,
        temperature: Finite = 1.0,
        top_k: PositiveInt | None = None,
        top_p: Fraction | None = None,
        min_p: Fraction | None = None,
        entropy_temperature: tuple[Finite, PositiveFinite, Finite] | None = None,
        speculative: Window | None = None,
        negative_prompt: str | None = None,
        parallel_size: PositiveInt = 8,
        images_per_batch: PositiveInt | Literal["auto"] = "auto",
        seed: Seed = 0,
        roles: Roles = "auto",
        backend: Backend = "transformers",
        compile: bool | Literal["auto"] = "auto",
        quantize: Quantization | None = None,
        inspect: list[tuple[NonNegativeInt, NonNegativeInt]] | None = None,
    ) -> None:
        super().__init__(
            model_path,
            dola=dola,
            layer_ratio=layer_ratio,
            layer=layer,
            compile=compile,
            quantize=quantize,
        )
        self.save_hyperparameters()
        self.roles = roles
        self.backend = backend
        self.speculative = speculative
        self.parallel_size = parallel_size
        self.images_per_batch = images_per_batch
        self.inspect = {ImageKey(*key) for key in inspect or ()}
        self.scoring = self.make_scoring()
        self.on_image_step: OnImageStep | None = None
        """Called after each decoding step with the images so far."""

    def check(self, model: ModelFolder) -> None:
        """Check the settings against the model.

        Raises:
            UserError: If the model has no such middle layer, or there is nothing to inspect.
        """
        if self.inspect and not self.dola:
            raise UserError("model.inspect: DoLa is off; expected model.dola true")
        super().check(model)

    def load(self, checkpoint: Checkpoint, **how: Any) -> ImageBackbone:
        """Load the language model, the image head and the VQ decoder.

        Raises:
            UserError: If they cannot be loaded.
        """
        return load_janus(checkpoint, backend=self.backend, **how)

    @property
    def max_new_tokens(self) -> int:
        """Tokens per image."""
        return self.janus.num_image_tokens

    def check_sharded(self) -> None:
        """Check the settings of a run whose ranks share one model.

        Raises:
            UserError: If images are to be inspected, which needs the whole model, or decoding is
                speculative.
        """
        if self.inspect:
            raise UserError("model.inspect: a sharded model cannot be inspected; expected null")
        if self.speculative:  # ranks would run different numbers of passes
            raise UserError("model.speculative: a sharded model decodes in step; expected null")
        super().check_sharded()

    def make_generator(self) -> TokenGenerator:
        """Return the token loop of the image head."""
        return token_generator(
            self.janus,
            self.janus.image_head,
            self.scoring,
            window=self.speculative,
            layer=self.middle_layer(self.plan.checkpoint),
            max_new_tokens=self.max_new_tokens,
            max_prompt_length=self.plan.longest_prompt,
            compile=self.compiles,
            share_prefill=not shards_the_model(self.trainer),
            fill_to=self.fill_to,
        )

    def predict_step(self, batch: list[ImageRequest], batch_idx: int) -> GeneratedImages:
        """Generate a batch of images, as many at once as fit into memory.

        Raises:
            UserError: If a single image does not fit.
        """
        parts = self.run_in_parts(batch, self._generate)
        images = GeneratedImages(
            [*chain(*(part.requests for part in parts))],
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.pixels for part in parts]),
            [*chain(*(part.failures for part in parts))],
            [*chain(*(part.forwards for part in parts))],
            [*chain(*(part.at_once for part in parts))],
        )
        return images._replace(inspections=self._inspect(images))

    def _generate(self, requests: list[ImageRequest]) -> GeneratedImages:
        """Generate a few images; those with infinite logits or pixels become failures."""
        prompts = [*map(self._branches, requests)]
        keys = [request.key for request in requests]
        # Inference mode would break the parameters that FSDP keeps of a layer.
        mode = torch.is_inference_mode_enabled() and not shards_the_model(self.trainer)
        not_finite: dict[int, str] = {}
        try:
            with torch.inference_mode(mode):
                tokens = self.generator(
                    prompts, keys, self._on_step(requests), seeds=[*map(self._seed_of, requests)]
                )
        except NotFiniteError as error:
            tokens = error.tokens
            for image, step in error.steps.items():
                not_finite[image] = f"the model's logits are NaN or infinite at step {step}"
        drawn = [image for image in range(len(requests)) if image not in not_finite]
        pixels = {}
        for image, one in zip(drawn, decode_pixels(self.janus, tokens[drawn])):
            if one is None:
                not_finite[image] = "the VQ decoder's pixels are NaN or infinite"
            else:
                pixels[image] = one
            self.call_on_step(self.max_new_tokens)
        made, forwards = [*pixels], self.generator.forwards
        return GeneratedImages(
            [requests[image] for image in made],
            tokens[made].to("cpu", torch.int32),
            torch.cat([torch.empty(0, dtype=torch.uint8), *pixels.values()]),
            [_failure(requests[image], not_finite[image]) for image in sorted(not_finite)],
            [None if forwards is None else int(forwards[image]) for image in made],
            [self.at_once] * len(made),
        )

    def _branches(self, request: ImageRequest) -> Branches:
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

    def _inspect(self, images: GeneratedImages) -> dict[int, Inspection]:
        """Inspect the selected images."""
        layer = self.middle_layer(self.plan.checkpoint)
        return {
            place: inspect_tokens(
                self.janus,
                replace(self.scoring, seed=self._seed_of(request)),
                layer,
                self._branches(request),
                images.tokens[place],
                request.key,
            )
            for place, request in enumerate(images.requests)
            if request.key in self.inspect and layer is not None
        }


def _failure(request: ImageRequest, reason: str) -> Failure:
    return Failure.of(
        request,
        f"image {request.image_index}: {reason}; expected finite ones, for which"
        " --trainer.precision bf16-true or 32-true has more range than 16-true",
    )
