"""Conversations about pictures: several questions with their answers, and the loss on the answers.

The conversation is that of ``answer``, with more turns: a picture is encoded once for several
questions. Every kind of question comes first often enough to be asked alone.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import JanusForConditionalGeneration

from lit_dola.janus.question import SYSTEM_PROMPT, QuestionEncoder
from recipes.shapes.questions import ask
from recipes.shapes.scene import Object, describe, place_objects, sample_scene

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
        turns: Questions; one in sixteen asks for the caption, every fourth other one for yes or no.
        rng: Source of randomness.

    Returns:
        Token ids, and the ids to predict at the same places: those of the answers, one place
        earlier, else -100.
    """
    ids: list[int] = []
    labels: list[int] = []
    for turn in range(turns):
        skill = "yes_no" if rng.random() < 0.15 else None
        asked = None if rng.random() < 1 / 16 else ask(objects, rng, skill)
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
    pictures: Tensor,
    conversations: Sequence[tuple[list[int], list[int]]],
    seen: Tensor,
    pad_token_id: int,
) -> Tensor:
    """Return the cross entropy of the answers, in nats per token.

    Args:
        janus: The model.
        pictures: Their embeddings, as the aligner returns them, ``(pictures, patches, hidden)``.
        conversations: One per picture, from :func:`converse`.
        seen: Which conversations see their picture; the others see pad tokens in its place, as the
            unconditional branch of ``answer``. Bool ``(pictures,)``.
        pad_token_id: Token id of padding.
    """
    device = pictures.device
    ids, labels = (
        pad_sequence([torch.tensor(row[part]) for row in conversations], True, value).to(device)
        for part, value in enumerate((pad_token_id, _IGNORE))
    )
    places = ids == janus.config.image_token_id
    language_model = janus.model.language_model
    embeddings = language_model.embed_tokens(ids.masked_fill(places, pad_token_id))
    rows = pictures[seen].to(embeddings.dtype)
    embeddings = embeddings.masked_scatter((places & seen[:, None])[..., None], rows)
    hidden_states = language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    wanted = labels != _IGNORE
    logits = janus.lm_head(hidden_states[wanted])
    return F.cross_entropy(logits.float(), labels[wanted])
