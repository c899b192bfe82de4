"""The LightningModule: Janus with DoLa-static, one batch of images at a time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import chain
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    restricted_number_type,
)
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from PIL import Image
from torch import Tensor

from lit_dola.cache import images_that_fit
from lit_dola.checkpoint import load_config
from lit_dola.data import ImageRequest, shards_the_model
from lit_dola.decoding import DecodingConfig, ImageKey, ImageTokenGenerator, NotFiniteError
from lit_dola.dola import pick_static_layer_index
from lit_dola.errors import RankError, UserError, suggestion
from lit_dola.guidance import HeadPolicy
from lit_dola.inspection import Inspection, inspect_tokens
from lit_dola.janus import JanusBackbone, find_checkpoint, load_janus, quantize_int8
from lit_dola.prompt import PromptEncoder, Roles
from lit_dola.prompt_file import Failure

if TYPE_CHECKING:
    Fraction = float
    Seed = int
else:
    Fraction = restricted_number_type("Fraction", float, [(">", 0), ("<=", 1)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])


_log = getLogger(__name__)


class GeneratedImages(NamedTuple):
    """What one predict step makes, on the CPU."""

    requests: list[ImageRequest]
    """Those that could be made."""
    tokens: Tensor
    """Int32 ``(images, num_image_tokens)``."""
    pixels: Tensor
    """Uint8 ``(images, 3, height, width)``."""
    failures: list[Failure]
    """Those that could not."""
    inspections: Mapping[int, Inspection] = MappingProxyType({})
    """Of chosen images, by place in ``requests``."""


class LitDoLa(LightningModule):
    """Text-to-image generation with Janus, its token distribution sharpened by DoLa-static.

    Args:
        model_path: Checkpoint: a local folder, a name on the Hugging Face hub, or one of
            Janus-1.3B, Janus-Pro-1B, Janus-Pro-7B. DeepSeek's layout and transformers' both load.
        dola: Whether DoLa is on; without it the step is exactly Janus' own.
        alpha: Threshold of the head set: tokens with at least ``alpha`` times the probability of
            the most probable one may be drawn.
        layer_ratio: Relative depth of the middle layer that the final one is contrasted with.
        layer: Index of the middle layer in ``hidden_states`` (0 is the embedding); overrides
            ``layer_ratio``.
        mid_norm: Whether the model's final norm is applied to the middle layer first, as a logit
            lens does; DoLa itself does not.
        head: Which tokens may be drawn where the head sets of the conditional and unconditional
            branch differ: cond, intersection, union, or seed (the old script's literal masking).
        cfg_weight: Guidance scale of classifier-free guidance; 1 is none.
        temperature: Divides the scores before a token is drawn; 0 is greedy.
        top_k: Draw from the k most probable tokens only.
        top_p: Draw from the smallest set of most probable tokens with at least this mass.
        parallel_size: Images a prompt.
        images_per_batch: Images a batch, of any prompts; each takes two rows of the language
            model. auto: as many as the GPU's memory holds, at most 64; 16 on a CPU.
        seed: An image depends on this, on its prompt's place in the file and on its own number
            only; not on its batch, the number of devices, or the order.
        roles: Role names of the prompt's conversation: pro (<|User|>), base (User), or auto: the
            checkpoint's chat template, else by the checkpoint's name.
        backend: Whose code runs the model: transformers, or deepseek (their janus package).
        compile: Whether the decoding step is compiled, with CUDA graphs on a GPU; auto: on a GPU.
        quantize: int8wo keeps the language model's weights as int8, one scale an output channel,
            by torchao: fewer bytes to read a step, and other images.
        inspect: Images of which every step is looked at, as ``[[prompt, image], ...]``: the size of
            the head set, how far final and middle layer diverge, the entropy before and after.
    """

    def __init__(
        self,
        model_path: str = "deepseek-ai/Janus-Pro-7B",
        dola: bool = True,
        alpha: Fraction = 0.1,
        layer_ratio: ClosedUnitInterval = 0.8,
        layer: PositiveInt | None = None,
        mid_norm: bool = False,
        head: HeadPolicy = "cond",
        cfg_weight: NonNegativeFloat = 5.0,
        temperature: NonNegativeFloat = 1.0,
        top_k: PositiveInt | None = None,
        top_p: Fraction | None = None,
        parallel_size: PositiveInt = 8,
        images_per_batch: PositiveInt | Literal["auto"] = "auto",
        seed: Seed = 0,
        roles: Roles = "auto",
        backend: Literal["transformers", "deepseek"] = "transformers",
        compile: bool | Literal["auto"] = "auto",
        quantize: Literal["int8wo"] | None = None,
        inspect: list[tuple[NonNegativeInt, NonNegativeInt]] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model_path = model_path
        self.dola = dola
        self.layer_ratio = layer_ratio
        self.layer = layer
        self.roles = roles
        self.backend = backend
        self._compile = compile
        self.quantize = quantize
        self.inspect = {ImageKey(*key) for key in inspect or ()}
        self.decoding_config = DecodingConfig(
            layer=layer,
            alpha=alpha,
            mid_norm=mid_norm,
            head=head,
            cfg_weight=cfg_weight,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        self.on_step: list[Callable[[int], None]] = []
        """Called after each decoding step with the number of tokens that each image has."""
        self._most_images: int | None = None
        """Images at once that the memory was enough for, once it was not enough for a batch."""

    janus: JanusBackbone

    @classmethod
    def checked(cls, settings: dict[str, Any]) -> "LitDoLa":
        """Make one from settings by their names, each checked as on the command line.

        Raises:
            UserError: If one is unknown or out of range.
        """
        parser = ArgumentParser(exit_on_error=False)
        known = parser.add_class_arguments(cls)
        for name in settings.keys() - set(known):
            raise UserError(f"{name}: no setting of the model{suggestion(name, known)}")
        try:
            return cls(**parser.parse_object(settings).as_dict())
        except ArgumentError as error:
            raise UserError(" ".join(str(error).split())) from error

    def setup(self, stage: str) -> None:
        """Choose the middle layer.

        Raises:
            UserError: If the model has no such layer, or there is nothing to inspect.
        """
        if self.inspect and not self.dola:
            raise UserError("model.inspect: DoLa is off; expected model.dola true")
        self.decoding_config = replace(self.decoding_config, layer=self._middle_layer)

    def configure_model(self) -> None:
        """Load the model, in the trainer's precision and straight onto its device.

        Raises:
            UserError: If it cannot be had or loaded, or is larger than the device's memory.
        """
        data = cast(Any, self.trainer).datamodule
        if hasattr(self, "janus") or (data is not None and not data.requests):
            return  # there is nothing to make
        encoder = PromptEncoder(self._checkpoint, self.roles, name=self.model_path)
        try:
            self.janus = load_janus(
                self._checkpoint,
                pad_token_id=encoder.pad_token_id,
                dtype=torch.get_default_dtype(),
                device=torch.get_default_device(),
                backend=self.backend,
            )
        except RuntimeError as error:
            if not is_oom_error(error):
                raise
            raise RankError(self._out_of_memory("the weights")) from error
        if shards_the_model(self.trainer):
            self._shard_layers()

    def on_predict_start(self) -> None:
        """Make the token loop ready for the prompts to come."""
        # By now the precision plugin has cast the whole module, see the called method.
        self.janus.restore_float32_buffers()
        if self.quantize:
            quantize_int8(self.janus)
        self._make_generator()

    def predict_step(self, batch: list[ImageRequest], batch_idx: int) -> GeneratedImages:
        """Generate a batch of images, as many at once as the memory is enough for.

        Raises:
            UserError: If it is not enough for one.
        """
        made, left, split = [], batch, False
        while left:
            images = min(self._most_images or len(left), len(left))
            part = self._generate_if_they_fit(left[:images])
            if part is None:
                self._most_images, split = images // 2, True
                continue
            if split:
                _log.warning("out of memory: from now on at most %d images at once", images)
                split = False
            made.append(part)
            left = left[images:]
        whole = GeneratedImages(
            [*chain(*(part.requests for part in made))],
            torch.cat([part.tokens for part in made]),
            torch.cat([part.pixels for part in made]),
            [*chain(*(part.failures for part in made))],
        )
        return whole._replace(inspections=self._inspect(whole))

    def _generate_if_they_fit(self, requests: list[ImageRequest]) -> GeneratedImages | None:
        """None where the memory is not enough for them."""
        try:
            return self._generate_images(requests)
        except RuntimeError as error:
            if not is_oom_error(error):
                raise
            if len(requests) == 1 or shards_the_model(self.trainer):  # ranks must go together
                raise RankError(self._out_of_memory(f"{len(requests)} image(s)")) from error
        # Here, where the error no longer holds what it ran out of.
        del self._generate
        torch.compiler.reset()  # the memory of CUDA graphs
        garbage_collection_cuda()
        self._make_generator()
        return None

    def _generate_images(self, requests: list[ImageRequest]) -> GeneratedImages:
        """Tokens and pixels of a few images; those whose logits are not finite are left out."""
        failures: list[Failure] = []
        prompts = [request.input_ids for request in requests]
        keys = [request.key for request in requests]
        # Inference mode would spoil what FSDP keeps of a layer.
        mode = torch.is_inference_mode_enabled() and not shards_the_model(self.trainer)
        try:
            with torch.inference_mode(mode):
                tokens = self._generate(prompts, keys, self._call_on_step)
        except NotFiniteError as error:
            failures = [_not_finite(requests[image], step) for image, step in error.steps.items()]
            sound = [image for image in range(len(requests)) if image not in error.steps]
            tokens, requests = error.tokens[sound], [requests[image] for image in sound]
        pixels = [torch.empty(0, dtype=torch.uint8)]
        for one in decode_pixels(self.janus, tokens):
            pixels.append(one)
            self._call_on_step(self.janus.num_image_tokens)
        return GeneratedImages(requests, tokens.to("cpu", torch.int32), torch.cat(pixels), failures)

    def _inspect(self, images: GeneratedImages) -> dict[int, Inspection]:
        """What happened at each step of the chosen images."""
        return {
            place: inspect_tokens(
                self.janus, self.decoding_config, request.input_ids, images.tokens[place], key
            )
            for place, request in enumerate(images.requests)
            if (key := request.key) in self.inspect
        }

    def _shard_layers(self) -> None:
        """Leave each rank a part of every layer; a layer is whole only while it runs."""
        from torch.distributed.fsdp import fully_shard  # since torch 2.6

        if self.quantize:
            raise UserError("model.quantize: int8 weights cannot be sharded; expected null")
        if self.inspect:
            raise UserError("model.inspect: a sharded model cannot be inspected; expected null")
        for layer in self.janus.language_model.layers:
            fully_shard(layer, reshard_after_forward=True)

    def _call_on_step(self, tokens: int) -> None:
        for call in self.on_step:
            call(tokens)

    def _make_generator(self) -> None:
        """A token loop that has no cache yet."""
        requests: list[ImageRequest] = cast(Any, self.trainer.predict_dataloaders).dataset
        on_gpu = self.device.type == "cuda" and not shards_the_model(self.trainer)
        self._generate = ImageTokenGenerator(
            self.janus,
            self.decoding_config,
            max_prompt_length=_longest_prompt(requests),
            compile=on_gpu if self._compile == "auto" else self._compile,
        )

    def _out_of_memory(self, what: str) -> str:
        return (
            f"out of memory at {what} of {self.model_path} in {self.trainer.precision}; expected a"
            " device with more free memory, --trainer.precision bf16-true, --model.quantize int8wo,"
            " --trainer.strategy fsdp on several GPUs, a smaller --model.images_per_batch or model"
        )

    def images_that_fit(self, requests: list[ImageRequest]) -> int:
        """Images a batch that the device has memory for, once the model is loaded."""
        language_model = self.janus.language_model
        slots = _longest_prompt(requests) + self.janus.num_image_tokens
        return images_that_fit(language_model.config, slots, language_model.embed_tokens.weight)

    def image_settings(self) -> dict[str, Any]:
        """Every setting that shapes an image, and what was resolved from it."""
        left_out = ("parallel_size", "images_per_batch", "compile", "inspect", "_instantiator")
        settings = {name: value for name, value in self.hparams.items() if name not in left_out}
        return {**settings, "layer": self._middle_layer}

    @cached_property
    def _checkpoint(self) -> Path:
        """Found once: for a name on the hub that asks the network."""
        return find_checkpoint(self.model_path)

    @cached_property
    def _middle_layer(self) -> int | None:
        if not self.dola:
            return None
        config, _ = load_config(self._checkpoint)
        num_layers = config.text_config.num_hidden_layers
        if self.layer is None:
            return pick_static_layer_index(num_layers + 1, True, self.layer_ratio)
        if self.layer < num_layers:
            return self.layer
        raise UserError(
            f"model.layer: {self.layer} is not a middle layer of {self.model_path}; expected 1 to"
            f" {num_layers - 1}, its final layer is {num_layers}"
        )


def _longest_prompt(requests: list[ImageRequest]) -> int:
    return max(len(request.input_ids) for request in requests)


def _not_finite(request: ImageRequest, step: int) -> Failure:
    prompt = request.prompt
    return Failure(
        prompt.prompt_index,
        request.image_index,
        prompt.text,
        f"entry {prompt.prompt_index}: image {request.image_index}: the model's logits are NaN or"
        f" infinite at step {step}; expected finite ones, for which --trainer.precision bf16-true"
        " or 32-true has more range than 16-true",
    )


def decode_pixels(janus: JanusBackbone, tokens: Tensor) -> Iterator[Tensor]:
    """Decode images one by one: a convolution's last bit depends on the size of the batch.

    Args:
        janus: The model.
        tokens: Int64 ``(images, num_image_tokens)``.

    Yields:
        Uint8 ``(1, 3, height, width)``, on the CPU.
    """
    for one in tokens.split(1):
        yield to_uint8(janus.decode_image_tokens(one)).cpu()


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] to uint8, cut off rather than rounded, as DeepSeek's script does."""
    return ((pixels.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)


def to_pillow(pixels: Tensor) -> Image.Image:
    """Uint8 ``(3, height, width)`` to an image."""
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
