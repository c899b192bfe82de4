"""Arguments as people write them in Python, checked and brought into one form."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_dola.data.pictures import InlinePicture, LoadedPicture, Picture
from lit_dola.errors import UserError
from lit_dola.janus.model import ImageBackbone
from lit_dola.settings.checks import given_path
from lit_dola.settings.numbers import MAX_SEED

PictureLike = str | os.PathLike[str] | Image.Image
Pair = tuple[tuple[Picture, ...], Any]
"""Pictures, and the question or labels about them."""

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
"""Arguments of diffusers, and their counterparts."""


@contextmanager
def in_python() -> Iterator[None]:
    """Name settings in errors as Python does: ``layer``, not ``model.layer``."""
    try:
        yield
    except UserError as error:
        raise error.in_python() from error


def refuse_strangers(names: Iterable[str], elsewhere: Iterable[str], method: str) -> None:
    """Refuse arguments that have another name here, or another place.

    Raises:
        UserError: If there is one.
    """
    for name in names:
        if name in _OF_DIFFUSERS:
            raise UserError(f"{name}: a name of diffusers; {_OF_DIFFUSERS[name]}")
        if name in elsewhere:
            raise UserError(
                f"{name}: not a setting of {method}",
                "it in from_pretrained, or on the command line",
            )


def check_texts(name: str, texts: Any) -> list[Any]:
    """Return one text or several as a list.

    Raises:
        UserError: If it is neither.
    """
    given = [texts] if isinstance(texts, str) else texts
    if not isinstance(given, Iterable) or isinstance(given, Mapping | bytes):
        raise UserError(f"{name}: found {type(texts).__name__}", "a text or a list of texts")
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
        if type(each) is not int or not 0 <= each <= MAX_SEED:
            raise UserError(f"{each!r}", f"integers, 0 <= seed <= {MAX_SEED}", setting="seed")
    size = parallel_size or len(seeds) // max(num_prompts, 1)
    if not seeds or len(seeds) != num_prompts * size:
        images = f"{num_prompts} prompt(s)" + (f" of {size} images" if parallel_size else "")
        raise UserError(f"{len(seeds)} seeds for {images}", "one for each image", setting="seed")
    return seeds, size


def check_callback(callback: Any) -> None:
    """Check the callback for steps.

    Raises:
        UserError: If it cannot be called.
    """
    if callback is not None and not callable(callback):
        raise UserError(
            f"found {type(callback).__name__}",
            "a function that takes an ImageStep",
            setting="callback_on_step",
        )


def check_pictures(images: Any) -> list[tuple[Picture, ...]]:
    """Return one picture or a list of them as a list; in a list, a list is several of one entry.

    Raises:
        UserError: If something is not a picture.
    """
    listed = [images] if isinstance(images, str | os.PathLike | Image.Image) else images
    if not isinstance(listed, Sequence):
        raise UserError(
            f"found {type(images).__name__}",
            "a path, an image of Pillow, or a list",
            setting="images",
        )
    if not listed:
        raise UserError("empty", "at least one", setting="images")
    return [_pictures(each) for each in listed]


def pair(pictures: list[tuple[Picture, ...]], questions: list[Any]) -> list[Pair]:
    """Pair pictures with questions: one of either goes with all of the others.

    Raises:
        UserError: If there are not as many.
    """
    if not questions:
        raise UserError("empty", "at least one", setting="questions")
    counts = len(pictures), len(questions)
    if 1 not in counts and counts[0] != counts[1]:
        raise UserError(
            f"{counts[0]} for {counts[1]} questions", "as many, or one", setting="images"
        )
    return [(pictures[i % counts[0]], questions[i % counts[1]]) for i in range(max(counts))]


def _pictures(given: Any) -> tuple[Picture, ...]:
    several = given if isinstance(given, list | tuple) else [given]
    return tuple(_picture(each) for each in several)


def _picture(given: Any) -> Picture:
    if isinstance(given, Image.Image):
        return LoadedPicture(given)
    if isinstance(given, str) and (inline := InlinePicture.parse(given)):
        return inline
    if isinstance(given, str | os.PathLike):
        return given_path("images", given)
    raise UserError(
        f"found {type(given).__name__}", "a path or an image of Pillow", setting="images"
    )


def name_of(picture: Picture) -> str:
    """Return the name of a picture in a record: its path, or its size."""
    if isinstance(picture, Path):
        return picture.as_posix()
    if isinstance(picture, InlinePicture):
        return picture.name
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
        raise UserError(
            f"{device!r} is an unknown device", "cpu, cuda or cuda:1", setting="device"
        ) from error
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise UserError(
            f"{found}, but this machine has {gpus} GPUs", "cpu or fewer", setting="device"
        )
    if found.type == "mps" and torch.backends.mps.is_available():
        return found
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"{found}", "cpu or cuda", setting="device")
    return found


def check_tokens(janus: ImageBackbone, tokens: Any) -> Tensor:
    """Return the tokens of images as ``(images, num_image_tokens)``.

    Raises:
    UserError: If they are not tokens of this model's images.
    """
    length, codes = janus.num_image_tokens, janus.image_head.linear.out_features
    expected = f"integers from 0 to {codes - 1} of shape (images, {length}) or ({length},)"
    try:
        found = tokens if isinstance(tokens, Tensor) else torch.from_numpy(np.asarray(tokens))
    except (TypeError, ValueError) as error:
        raise UserError(f"{error}", f"{expected}", setting="tokens") from error
    images = found[None] if found.dim() == 1 else found
    if images.dim() != 2 or images.shape[1] != length:
        raise UserError(f"found shape {tuple(found.shape)}", f"{expected}", setting="tokens")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise UserError(f"found {found.dtype}", f"{expected}", setting="tokens")
    if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < codes:
        raise UserError(
            f"found {int(images.min())} to {int(images.max())}", f"{expected}", setting="tokens"
        )
    return images
