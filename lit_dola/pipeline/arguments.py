"""Arguments as people write them in Python, checked and brought into one form."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_dola.data.pictures import LoadedPicture, Picture
from lit_dola.errors import UserError, given_path
from lit_dola.janus.model import ImageBackbone

PictureLike = str | os.PathLike[str] | Image.Image
Pair = tuple[tuple[Picture, ...], Any]
"""Pictures, and what is asked or said about them."""

_OF_DIFFUSERS = {
    "prompt": "expected prompts",
    "guidance_scale": "expected cfg_weight, which means the same",
    "num_images_per_prompt": "expected parallel_size, which means the same",
    "generator": "expected seed, which with the indices of an image decides all of its noise",
    "num_inference_steps": "there is no such setting: an image has as many steps as tokens",
    "height": "there is no such setting: images have the size that the model was trained for",
    "width": "there is no such setting: images have the size that the model was trained for",
    "output_type": "there is no such setting: the result has both images and tokens",
    "callback_on_step_end": "expected callback_on_step, which gets the images so far",
}
"""Arguments that users of diffusers may try, and what to say about them."""
MOST_SEED = 2**32 - 1


@contextmanager
def in_python(settings: Iterable[str]) -> Iterator[None]:
    """Name settings in errors as Python does: ``layer``, not ``model.layer``.

    Args:
        settings: Names of the settings; what else looks like one may be a file, as ``model.png``.
    """
    names = "|".join(map(re.escape, settings))
    try:
        yield
    except UserError as error:
        as_in_python = re.sub(rf"(?:--)?\bmodel\.(?=(?:{names})\b)", "", str(error))
        raise UserError(as_in_python) from error


def refuse_strangers(names: Iterable[str], elsewhere: Iterable[str], method: str) -> None:
    """Refuse arguments that have another name here, or another place.

    Args:
        names: Names of the arguments.
        elsewhere: Settings that :meth:`JanusPipeline.from_pretrained` takes, or only a run.
        method: What was called.

    Raises:
        UserError: If there is one.
    """
    for name in names:
        if name in _OF_DIFFUSERS:
            raise UserError(f"{name}: a name of diffusers; {_OF_DIFFUSERS[name]}")
        if name in elsewhere:
            raise UserError(
                f"{name}: not a setting of {method}; expected it in from_pretrained, or on the"
                " command line"
            )


def check_texts(name: str, texts: Any) -> list[Any]:
    """Return one text or several as a list.

    Raises:
        UserError: If it is neither.
    """
    given = [texts] if isinstance(texts, str) else texts
    if not isinstance(given, Iterable) or isinstance(given, Mapping | bytes):
        raise UserError(f"{name}: found {type(texts).__name__}; expected a text or a list of texts")
    return [*given]


def seeds_of_images(
    seed: Any, num_prompts: int, parallel_size: int | None
) -> tuple[list[int], int]:
    """Return the seed of each image, and how many images a prompt has.

    Args:
        seed: One seed per image.
        num_prompts: Number of prompts.
        parallel_size: Images per prompt; None: as many as there are seeds for.

    Raises:
        UserError: If they do not fit together.
    """
    seeds = [*seed]
    for each in seeds:
        if type(each) is not int or not 0 <= each <= MOST_SEED:
            raise UserError(f"seed: {each!r}; expected integers, 0 <= seed <= {MOST_SEED}")
    size = parallel_size or len(seeds) // max(num_prompts, 1)
    if not seeds or len(seeds) != num_prompts * size:
        images = f"{num_prompts} prompt(s)" + (f" of {size} images" if parallel_size else "")
        raise UserError(f"seed: {len(seeds)} seeds for {images}; expected one for each image")
    return seeds, size


def check_callback(callback: Any) -> None:
    """Check what is to be called after each step.

    Raises:
        UserError: If it cannot be called.
    """
    if callback is not None and not callable(callback):
        raise UserError(
            f"callback_on_step: found {type(callback).__name__}; expected a function that takes an"
            " ImageStep"
        )


def check_pictures(images: Any) -> list[tuple[Picture, ...]]:
    """Return one picture or a list of them as a list; in a list, a list is several of one entry.

    Raises:
        UserError: If something is no picture.
    """
    listed = [images] if isinstance(images, str | os.PathLike | Image.Image) else images
    if not isinstance(listed, Sequence):
        raise UserError(
            f"images: found {type(images).__name__}; expected a path, an image of Pillow, or a list"
        )
    if not listed:
        raise UserError("images: empty; expected at least one")
    return [_pictures(each) for each in listed]


def pair(pictures: list[tuple[Picture, ...]], questions: list[Any]) -> list[Pair]:
    """Pair pictures with questions: one of either goes with all of the others.

    Raises:
        UserError: If there are not as many.
    """
    if not questions:
        raise UserError("questions: empty; expected at least one")
    counts = len(pictures), len(questions)
    if 1 not in counts and counts[0] != counts[1]:
        raise UserError(f"images: {counts[0]} for {counts[1]} questions; expected as many, or one")
    return [(pictures[i % counts[0]], questions[i % counts[1]]) for i in range(max(counts))]


def _pictures(given: Any) -> tuple[Picture, ...]:
    several = given if isinstance(given, list | tuple) else [given]
    return tuple(_picture(each) for each in several)


def _picture(given: Any) -> Picture:
    if isinstance(given, Image.Image):
        return LoadedPicture(given)
    if isinstance(given, str | os.PathLike):
        return given_path("images", given)
    raise UserError(f"images: found {type(given).__name__}; expected a path or an image of Pillow")


def name_of(picture: Picture) -> str:
    """Return what a record calls a picture: its path, or what it is."""
    if isinstance(picture, Path):
        return picture.as_posix()
    return f"<{picture.image.width} x {picture.image.height} image>"


def check_device(device: torch.device | str | None) -> torch.device:
    """Return the device of a model.

    Raises:
        UserError: If it is not one, or not on this machine.
    """
    gpus = torch.cuda.device_count()
    try:
        found = torch.device(device or ("cuda" if gpus else "cpu"))
    except RuntimeError as error:
        raise UserError(f"device: {device!r} is no device; expected cpu, cuda or cuda:1") from error
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise UserError(f"device: {found}, but this machine has {gpus} GPUs; expected cpu or fewer")
    if found.type == "mps" and torch.backends.mps.is_available():
        return found
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"device: {found}; expected cpu or cuda")
    return found


def check_tokens(janus: ImageBackbone, tokens: Any) -> Tensor:
    """Return the tokens of images as ``(images, num_image_tokens)``.

    Raises:
    UserError: If they are no tokens of this model's images.
    """
    length, codes = janus.num_image_tokens, janus.image_head.linear.out_features
    expected = f"integers from 0 to {codes - 1} of shape (images, {length}) or ({length},)"
    try:
        found = tokens if isinstance(tokens, Tensor) else torch.from_numpy(np.asarray(tokens))
    except (TypeError, ValueError) as error:
        raise UserError(f"tokens: {error}; expected {expected}") from error
    images = found[None] if found.dim() == 1 else found
    if images.dim() != 2 or images.shape[1] != length:
        raise UserError(f"tokens: found shape {tuple(found.shape)}; expected {expected}")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise UserError(f"tokens: found {found.dtype}; expected {expected}")
    if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < codes:
        raise UserError(
            f"tokens: found {int(images.min())} to {int(images.max())}; expected {expected}"
        )
    return images
