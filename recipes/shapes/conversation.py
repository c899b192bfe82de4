"""Conversations about pictures: several questions with their answers, and the loss on the answers.

The conversation is that of ``answer``, with more turns: a picture is encoded once for several
questions. Every kind of question comes first often enough to be asked alone.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import JanusForConditionalGeneration

from lit_dola.janus.question import SYSTEM_PROMPT, QuestionEncoder
from recipes.shapes.questions import ask
from recipes.shapes.scene import (
    COLORS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Object,
    describe,
    place_objects,
    sample_scene,
)

DESCRIBE = "What is in the image?"
"""The question whose answer is the caption."""
_IGNORE = -100


def example_texts(scenes: int = 5000) -> list[str]:
    """Return what the tokenizer is trained on: prompts, questions, answers, the system prompt."""
    rng = random.Random(0)
    texts = [DESCRIBE, SYSTEM_PROMPT] * 200
    for _ in range(scenes):
        scene = sample_scene(rng)
        asked = ask(place_objects(scene, rng), rng)
        texts += [describe(scene, rng), *([asked.text, f" {asked.answer}"] if asked else [])]
    return texts


def converse(
    encoder: QuestionEncoder,
    objects: Sequence[Object],
    caption: str,
    turns: int,
    rng: random.Random,
) -> tuple[list[int], list[int]]:
    """Return a conversation about a picture.

    Args:
        encoder: Encodes it.
        objects: The picture's objects.
        caption: What the picture shows.
        turns: Questions; one in eight asks for the caption.
        rng: Source of randomness.

    Returns:
        Token ids, and the ids to predict at the same places: those of the answers, one place
        earlier, else -100.
    """
    ids: list[int] = []
    labels: list[int] = []
    for turn in range(turns):
        asked = None if rng.random() < 0.125 else ask(objects, rng)
        question, answer = (asked.text, asked.answer) if asked else (DESCRIBE, caption)
        if turn == 0:
            prompt = encoder.encode_question(question)
        else:
            prompt = encoder.encode_text(encoder.text(question))
        answer_ids = [*encoder.encode_text(f" {answer}"), encoder.eos_token_id]
        ids += prompt + answer_ids
        labels += [_IGNORE] * (len(prompt) - 1) + answer_ids + [_IGNORE]
    return ids, labels


def answer_loss(
    janus: JanusForConditionalGeneration,
    features: Tensor,
    conversations: Sequence[tuple[list[int], list[int]]],
    seen: Tensor,
    pad_token_id: int,
) -> Tensor:
    """Return the cross entropy of the answers, in nats per token.

    Args:
        janus: The model.
        features: What its vision tower returns for the pictures, ``(pictures, patches, hidden)``.
        conversations: One per picture, from :func:`converse`.
        seen: Which conversations see their picture; the others see pad tokens in its place, as the
            unconditional branch of ``answer``. Bool ``(pictures,)``.
        pad_token_id: Token id of padding.
    """
    device = features.device
    ids, labels = (
        pad_sequence([torch.tensor(row[part]) for row in conversations], True, value).to(device)
        for part, value in enumerate((pad_token_id, _IGNORE))
    )
    places = ids == janus.config.image_token_id
    language_model = janus.model.language_model
    embeddings = language_model.embed_tokens(ids.masked_fill(places, pad_token_id))
    pictures = janus.model.aligner(features[seen]).to(embeddings.dtype)
    embeddings = embeddings.masked_scatter((places & seen[:, None])[..., None], pictures)
    hidden_states = language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    wanted = labels != _IGNORE
    logits = janus.lm_head(hidden_states[wanted])
    return F.cross_entropy(logits.float(), labels[wanted])


NUM_PATCH_LABELS = 1 + len(COLORS) * len(SHAPES) * len(SIZES)
"""Ground, or one of all combinations of colour, shape and size."""


def patch_loss(
    classifier: nn.Module, features: Tensor, pictures: Sequence[Sequence[Object]]
) -> Tensor:
    """Return the cross entropy of naming what each patch shows, in nats per patch.

    Args:
        classifier: Maps features to logits of the :data:`NUM_PATCH_LABELS`.
        features: What a vision tower returns, ``(pictures, patches, hidden)``.
        pictures: The objects of each picture.
    """
    side = math.isqrt(features.shape[1])
    labels = torch.stack([patch_labels(objects, side) for objects in pictures])
    classes = classifier(features).float().flatten(0, 1)
    return F.cross_entropy(classes, labels.to(features.device).flatten())


def patch_labels(objects: Sequence[Object], patches: int) -> Tensor:
    """Return which kind of object covers the centre of each patch, 0 for ground.

    The vision tower learns to tell them, as the published one has learned to see before it becomes
    a part of Janus. A box around each object counts as covered.

    Args:
        objects: A picture's objects.
        patches: Patches along each side.

    Returns:
        Int64 ``(patches * patches,)``, below :data:`NUM_PATCH_LABELS`.
    """
    centres = (np.arange(patches) + 0.5) * (IMAGE_SIZE / patches)
    labels = np.zeros((patches, patches), dtype=np.int64)
    for thing in objects:
        rows, columns = (abs(centres - centre) <= thing.radius for centre in (thing.y, thing.x))
        kind = COLORS.index(thing.color) * len(SHAPES) + SHAPES.index(thing.shape)
        labels[np.ix_(rows, columns)] = 1 + kind * len(SIZES) + SIZES.index(thing.size)
    return torch.from_numpy(labels).flatten()
