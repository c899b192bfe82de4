"""The promises of this project, each tried on a loaded model."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from math import log, nan
from pathlib import Path
from statistics import median

import torch
from PIL import Image, ImageChops, ImageStat
from torch import Tensor

from lit_dola.decoding.guidance import classifier_free_guidance
from lit_dola.decoding.loop import TokenGenerator
from lit_dola.decoding.prefill import Branches
from lit_dola.decoding.scoring import Scoring, score_logits
from lit_dola.decoding.trial import TOLERANCE, explained, find_disagreement
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.model import TransformersJanus
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.janus.vq import decode_pixels, to_pillow
from lit_dola.janus.weights import samples_that_differ
from lit_dola.runs.files import write_atomically
from lit_dola.runs.image_file import encode_image, is_whole, read_image
from lit_dola.verification.findings import Row, promise
from lit_dola.verification.measure import timed
from lit_dola.verification.subject import TURNS, Subject

PROMPT = "a photo of two red circles"
LOGITS = 32
"""Image tokens after which logits are compared."""
_SPREAD = {True: 1e-4, False: 0.05}
"""Root mean square of a difference of logits that rounding explains, as a share of their standard
deviation; in float32 and float64, and in less."""
_UNIT = {True: 1e-3, False: TOLERANCE}
"""Difference of two scores that rounding explains, per unit of guidance, likewise."""
_JPEG = 8
"""Mean difference of pixels, of 255, that a JPEG of quality 95 may make, even of noise."""
_REPORT = "nothing; please report it with verify.json"
_PRECISION = "--trainer.precision 32-true; please report it with verify.json"


def check_checkpoint(
    subject: Subject, checkpoint: Checkpoint, encoder: PromptEncoder
) -> Iterator[Row]:
    """Look at the files, the weights and the conversation of a checkpoint."""
    text = checkpoint.config.text_config
    published = " or ".join(checkpoint.published) or "not a published one"
    yield Row(
        "checkpoint: layout",
        f"{checkpoint.layout}, {text.num_hidden_layers} layers of {text.hidden_size}; size:"
        f" {published}",
    )
    yield _weights(subject, checkpoint)
    yield Row("checkpoint: fingerprint", checkpoint.fingerprint)
    conversation = encoder.text(PROMPT)
    known = [f"{user}: {PROMPT}\n\n{assistant}:" for user, assistant in _ROLES]
    yield promise(
        "checkpoint: conversation",
        f"{conversation!r}, roles {encoder.roles}",
        f"that of DeepSeek: {known[0]!r} or {known[1]!r}",
        conversation in known,
        "--model.roles pro, or base for Janus-1.3B",
    )
    ids = encoder.encode(PROMPT)
    yield promise(
        "checkpoint: token ids",
        " ".join(map(str, ids)),
        f"{encoder.bos_token_id} (BOS), the text, {encoder.boi_token_id} (begin-of-image)",
        ids == [encoder.bos_token_id, *encoder.encode_text(conversation), encoder.boi_token_id]
        and len(ids) > 2,
        "the checkpoint's own tokenizer.json",
    )


_ROLES = (("<|User|>", "<|Assistant|>"), ("User", "Assistant"))
"""Those of Janus-Pro and of Janus-1.3B, on their own: what the tokenizer says is looked at."""


def _weights(subject: Subject, checkpoint: Checkpoint) -> Row:
    """Compare samples of the weights with their files; loading has found them all."""
    janus, name = subject.janus, "checkpoint: weights"
    weights = [*janus.parameters()]
    size = f"{sum(weight.numel() for weight in weights) / 1e6:,.1f}M parameters"
    dtype = subject.dtype_name
    if not isinstance(janus, TransformersJanus):
        return Row(name, f"{size} in {dtype}, loaded by DeepSeek's own package")
    found = samples_that_differ(janus.model, checkpoint, janus.unused, subject.weight.dtype)
    counts = torch.stack([*found.values()]).tolist() if found else []
    differ = [weight for weight, count in zip(found, counts) if count]
    same = f"{len(found) - len(differ)} of {len(found)} tensors as in their files"
    return promise(
        name,
        ": ".join([f"{size} in {dtype}; {same}", *filter(None, [", ".join(differ[:3])])]),
        "every weight as its file has it",
        not differ,
        "a fresh download of the checkpoint",
    )


def check_logits(subject: Subject) -> Iterator[Row]:
    """Compare the loop, a step at a time, with transformers' forward pass of the same weights."""
    count = min(LOGITS, subject.janus.num_image_tokens)
    tokens = _random_tokens(subject, count)
    prompt = subject.prompts[0]
    states = subject.loop(count, dola=False).states([prompt], tokens, window=1)
    theirs = _transformers_logits(subject, prompt, tokens)
    difference = subject.janus.image_head.logits(states[0]).float() - theirs
    spread = theirs.std(dim=-1).mean()
    share = float(difference.pow(2).mean().sqrt() / spread)
    most = float(difference.abs().amax())
    allowed = _SPREAD[subject.exact]
    yield promise(
        "logits: transformers' forward pass",
        f"{share:.1e} of their standard deviation apart, at most {most:.1e}",
        f"at most {allowed:g} of it",
        share <= allowed,
        _REPORT if subject.exact else _PRECISION,
    )
    yield _greedy_tokens(subject, prompt, count)


def _greedy_tokens(subject: Subject, prompt: Branches, count: int) -> Row:
    """Compare greedy tokens of the baseline; a tie of the two best is no fault."""
    greedy = replace(subject.scoring.baseline, temperature=0.0)
    drawn = subject.draw(subject.loop(count, dola=False, scoring=greedy), [(0, 0)], count)
    logits = _transformers_logits(subject, prompt, drawn)
    scores = classifier_free_guidance(logits[0], logits[-1], greedy.cfg_weight)
    behind = scores.amax(dim=-1) - scores.gather(-1, drawn[0][:, None])[:, 0]
    equal = int((behind == 0).sum())
    most, allowed = float(behind.amax()), explained(greedy, _UNIT[subject.exact])
    others = f", scores of the others at most {most:.1e} behind" if equal < count else ""
    return promise(
        "logits: greedy tokens",
        f"{equal} of {count} are transformers'{others}",
        f"all, or ties: at most {allowed:g} behind",
        most <= allowed,
        _REPORT if subject.exact else _PRECISION,
    )


def _transformers_logits(subject: Subject, prompt: Branches, tokens: Tensor) -> Tensor:
    """Return the logits of one sequence after its prompt and each token but the last.

    Float32 ``(branches, tokens, vocab)``, from transformers' Llama as a whole and the image head.
    """
    janus, language_model = subject.janus, subject.janus.language_model
    image = janus.image_head.embed(tokens[:, :-1])
    found = []
    for ids in prompt:
        text = language_model.embed_tokens(torch.tensor([[*ids]], device=subject.device))
        embeds = torch.cat([text, image.to(text.dtype)], dim=1)
        output = language_model(inputs_embeds=embeds, use_cache=False)
        found.append(janus.head_module(output.last_hidden_state[0, len(ids) - 1 :]).float())
    return torch.stack(found)


def _random_tokens(subject: Subject, count: int) -> Tensor:
    """Return the same random tokens of one image in every verification, int64 ``(1, count)``."""
    vocab = subject.janus.image_head.linear.weight.shape[0]
    fixed = torch.Generator().manual_seed(0)
    return torch.randint(vocab, (1, count), generator=fixed).to(subject.device)


def check_dola(subject: Subject) -> Iterator[Row]:
    """Compare the loop's scores with the plain functions in float64, and DoLa at 0 with none."""
    count = subject.short
    scoring = replace(
        subject.scoring, temperature=0.0, top_k=None, top_p=None, min_p=None,
        entropy_temperature=None,
    )  # fmt: skip
    generate, keys = subject.loop(count, scoring=scoring), subject.keys(2)
    prompts = subject.prompts_of(keys)
    tokens = subject.draw(generate, keys, count)
    scores = generate.race(prompts, keys, tokens).double()
    logits = _logits_of(subject, generate.states(prompts, tokens))
    apart, outside = _differences(scores, logits, scoring, _UNIT[subject.exact])
    allowed = explained(scoring, _UNIT[subject.exact])
    yield promise(
        "dola: scores in float64",
        f"at most {apart:.1e} apart; {outside} tokens wrongly in or outside the head set",
        f"at most {allowed:g} apart, and none",
        apart <= allowed and outside == 0,
        _REPORT if subject.exact else _PRECISION,
    )
    zero = replace(subject.scoring, strength=0.0, alpha=0.0, beta=0.0)
    with_dola = subject.draw(subject.loop(count, scoring=zero), keys, count)
    without = subject.draw(subject.loop(count, dola=False), keys, count)
    equal = int((with_dola == without).all(dim=1).sum())
    yield promise(
        "dola: strength 0 and alpha 0",
        f"{equal} of {len(keys)} images as with dola: false",
        f"{len(keys)}",
        equal == len(keys),
        "--model.dola false for the baseline",
    )


def _logits_of(subject: Subject, states: Tensor) -> Tensor:
    """Return logits of states ``(layers, rows, count, hidden)`` in float64.

    Float64 ``(layers, branches, sequences, count, vocab)``.
    """
    logits = subject.janus.image_head.logits(states).double()
    layers, rows, count, vocab = logits.shape
    branches = len(subject.prompts[0])
    return logits.view(layers, rows // branches, branches, count, vocab).transpose(1, 2)


def _differences(
    scores: Tensor, logits: Tensor, scoring: Scoring, unit: float
) -> tuple[float, int]:
    """Return how far scores are from those of logits, and the tokens wrongly in or outside.

    Scores are compared up to a constant per draw. A token counts as wrongly in or outside the head
    set if it is further from the threshold than rounding explains.

    Args:
        scores: The loop's, ``(sequences, count, vocab)``.
        logits: As :func:`_logits_of` returns them.
        scoring: The settings.
        unit: Difference of two log-probabilities that rounding explains.
    """
    reference = score_logits(logits, scoring)
    both = scores.isfinite() & reference.isfinite()
    gap = (scores - reference).where(both, 0.0)
    gap = gap - gap.sum(dim=-1, keepdim=True) / both.sum(dim=-1, keepdim=True)
    size = reference.where(both, 0.0).abs()
    apart = (gap.abs() - 1e-6 * size).where(both, 0.0).amax()  # per_branch has scores of 1e9
    log_probs = logits[0].log_softmax(dim=-1)
    threshold = log(scoring.alpha) if scoring.alpha else float("-inf")
    margin = (log_probs - log_probs.amax(dim=-1, keepdim=True) - threshold).abs().amin(dim=0)
    wrong = (scores.isfinite() != reference.isfinite()) & (margin > unit)
    broken = ~both.any(dim=-1)
    return float(apart.where(~broken.any(), float("nan"))), int(wrong.sum())


def check_same_image(subject: Subject, generate: TokenGenerator) -> Iterator[Row]:
    """Draw images alone, in the batch that fits, among other neighbours, and in another order."""
    keys, count = subject.keys(subject.fitting), subject.short
    places = sorted({0, len(keys) // 2, len(keys) - 1})
    together = subject.draw(generate, keys, count)
    others = [(prompt, image + 1000) for prompt, image in keys]
    others[-len(places) :] = [keys[place] for place in places]
    ways = {
        "alone": torch.cat([subject.draw(generate, [keys[place]], count) for place in places]),
        "among others": subject.draw(generate, others, count)[-len(places) :],
        "in another order": subject.draw(generate, keys[::-1], count).flip(0)[places],
    }
    for way, tokens in ways.items():
        equal = int((tokens == together[places]).all(dim=1).sum())
        yield promise(
            f"same image: {way}",
            f"{equal} of {len(places)} as in a batch of {len(keys)}",
            f"{len(places)}",
            equal == len(places),
            "--trainer.precision 32-true, or --model.images_per_batch 1",
        )


def check_speculative(subject: Subject) -> Iterator[Row]:
    """Compare speculative decoding with one token at a time."""
    keys = subject.keys(2)
    prompts = subject.prompts_of(keys)
    count = min(subject.short + 2 * subject.window, subject.janus.num_image_tokens)
    generate = subject.loop(count, window=subject.window)
    tokens = generate(prompts, keys)
    fault = find_disagreement(subject.loop(count), prompts, keys, tokens, subject.exact)
    assert generate.forwards is not None
    passes = float(generate.forwards.double().mean())
    yield promise(
        "speculative: tokens",
        fault or f"those of one at a time; {passes:.1f} passes for {count - 1} tokens",
        "those of one at a time",
        fault is None,
        "--model.speculative null",
    )


@torch.inference_mode()
def check_pixels(subject: Subject) -> Iterator[Row]:
    """Decode an image, then write and read it as a JPEG."""
    janus = subject.janus
    tokens = _random_tokens(subject, janus.num_image_tokens)
    pixels: list[Tensor | None] = []
    turns = TURNS + 1 if subject.device.type == "cuda" else 1
    seconds = [
        timed(lambda: pixels.extend(decode_pixels(janus, tokens)), subject.device)
        for _ in range(turns)
    ]
    subject.pixel_seconds = median(seconds)
    decoded = pixels[-1]
    yield promise(
        "pixels: VQ decoder",
        f"{subject.pixel_seconds:.3g} s per image" if decoded is not None else "NaN or infinite",
        "finite pixels",
        decoded is not None,
        "--trainer.precision bf16-true or 32-true",
    )
    if decoded is not None:
        yield _jpeg(to_pillow(decoded[0]))


def _jpeg(image: Image.Image) -> Row:
    """Write and read an image."""
    apart = nan
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        write_atomically(path, [encode_image(image, {"prompt": PROMPT}, "jpg", 95)])
        if whole := is_whole(path):
            mean = ImageStat.Stat(ImageChops.difference(image, read_image(path))).mean
            apart = sum(mean) / len(mean)
    return promise(
        "pixels: JPEG",
        f"whole, pixels {apart:.1f} of 255 apart on average" if whole else "cut off",
        f"whole, at most {_JPEG} apart",
        apart <= _JPEG,
        "--writer.format png",
    )
