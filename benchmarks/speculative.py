"""``python -m benchmarks.speculative``: passes and time of speculative Jacobi decoding.

On the trained small Janus, since what can be guessed depends on the model. Times are ratios of
methods that run in turns; float32.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor
from tqdm import tqdm
from transformers import JanusForConditionalGeneration

from benchmarks.models import make_scoring
from benchmarks.turns import in_turns, ratio
from lit_dola.decoding.loop import TokenGenerator, cfg_pair
from lit_dola.decoding.pool import token_generator
from lit_dola.decoding.prefill import Branches
from lit_dola.decoding.scoring import Scoring
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import load_janus
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.pipeline.janus_pipeline import JanusPipeline
from lit_dola.reports.generation import Generation

CHECKPOINT = "checkpoints/shapes-janus"
MODES: dict[str, tuple[Scoring, int | None]] = {
    "baseline, guidance 1": (make_scoring(cfg_weight=1.0), None),
    "baseline, guidance 2": (make_scoring(cfg_weight=2.0), None),
    "baseline, guidance 2, greedy": (make_scoring(cfg_weight=2.0, temperature=0.0), None),
    "baseline, guidance 5": (make_scoring(cfg_weight=5.0), None),
    "DoLa by default": (make_scoring(), 8),
    "DoLa as recommended": (
        make_scoring(alpha=0.005, strength=0.2, mid_norm=True, cfg_weight=2.0),
        5,
    ),
}
"""Scoring and middle layer."""
_BATCH = 40


class Setup:
    """The model and its prompts."""

    def __init__(self, prompts: int) -> None:
        checkpoint = Checkpoint.open(CHECKPOINT)
        encoder = PromptEncoder(checkpoint.folder)
        self.janus = load_janus(
            checkpoint, pad_token_id=encoder.pad_token_id, dtype=torch.float32, device="cpu"
        )
        self.reference = JanusForConditionalGeneration.from_pretrained(
            CHECKPOINT, dtype=torch.float32
        ).eval()
        lines = Path("recipes/shapes/prompts.jsonl").read_text("utf-8").splitlines()
        step = max(1, len(lines) // prompts)
        self.prompts = [str(json.loads(line)["prompt"]) for line in lines[::step][:prompts]]
        self.ids = [*map(encoder.encode, self.prompts)]

    def generator(self, mode: str, window: int | None, **pool: Any) -> TokenGenerator:
        """Return a token loop, speculative with a window."""
        scoring, layer = MODES[mode]
        return token_generator(
            self.janus, self.janus.image_head, scoring, window=window, layer=layer, **pool,
            max_new_tokens=self.janus.num_image_tokens,
        )  # fmt: skip

    def branches(self, prompt: int) -> Branches:
        """Return both branches of a prompt."""
        return cfg_pair(self.ids[prompt], self.janus.pad_token_id)

    def transformers(self, prompt: int) -> Tensor:
        """Draw an image's tokens with transformers' own loop."""
        ids = torch.tensor([self.ids[prompt]])
        tokens: Tensor = self.reference.generate(
            ids, attention_mask=torch.ones_like(ids), generation_mode="image", do_sample=True,
            guidance_scale=2.0, top_k=0,
        )  # fmt: skip
        return tokens


def main(
    prompts: int = 280, images: int = 2, window: int = 16, repeats: int = 5, tokens: bool = True
) -> None:
    """Compare speculative with one-at-a-time decoding.

    Args:
        prompts: Prompts whose tokens and passes are compared.
        images: Images of each.
        window: Tokens per pass.
        repeats: Turns of the times, each with another prompt.
        tokens: Compare tokens and passes, too.
    """
    setup = Setup(prompts)
    print("| | equal tokens | mean passes of 144 | least | most |\n| --- | --- | --- | --- | --- |")
    for mode in MODES if tokens else ():
        equal, passes = _compare(setup, mode, images, window)
        print(
            f"| {mode} | {equal} of {len(passes)} | {passes.float().mean():.1f} |"
            f" {passes.min()} | {passes.max()} |"
        )
    print("\n| ratio of times | median (lowest to highest) |\n| --- | --- |")
    tables = (
        _loops(setup, window, repeats), _calls(setup, window, repeats), _lengths(setup, repeats)
    )  # fmt: skip
    for row in chain(*tables):
        print(row, flush=True)


@torch.inference_mode()
def _compare(setup: Setup, mode: str, images: int, window: int) -> tuple[int, Tensor]:
    """Return how many images have equal tokens, and the passes of each."""
    keys = list(product(range(len(setup.ids)), range(images)))
    plain = setup.generator(mode, None)
    fast = setup.generator(mode, window, adapts=False, places=16)
    equal, passes = 0, []
    for first in tqdm(range(0, len(keys), _BATCH), desc=mode, disable=None, leave=False):
        part = keys[first : first + _BATCH]
        branches = [setup.branches(prompt) for prompt, _ in part]
        tokens = plain(branches, part), fast(branches, part)
        equal += int((tokens[0] == tokens[1]).all(dim=1).sum())
        assert fast.forwards is not None
        passes.append(fast.forwards)
    return equal, torch.cat(passes)


@torch.inference_mode()
def _loops(setup: Setup, window: int, repeats: int) -> Iterator[str]:
    """Yield rows of a table about the token loop alone."""
    mode = "baseline, guidance 2"
    plain, fast = setup.generator(mode, None), setup.generator(mode, window)
    whole = setup.generator(mode, window, adapts=False)

    def run(turn: int, generate: TokenGenerator, images: int) -> Tensor:
        prompt = turn * 37 % len(setup.ids)
        keys = [(prompt, image) for image in range(images)]
        return generate([setup.branches(prompt)] * images, keys)

    for images in (1, 8):
        calls: dict[str, Callable[[int], Tensor]] = {
            "one at a time": partial(run, generate=plain, images=images),
            "speculative": partial(run, generate=fast, images=images),
            "always the whole window": partial(run, generate=whole, images=images),
        }
        if images == 1:
            calls["transformers"] = lambda turn: setup.transformers(turn * 37 % len(setup.ids))
        seconds = in_turns(calls, repeats, torch.device("cpu"))
        ours = seconds.pop("speculative")
        for name, theirs in seconds.items():
            yield f"| the loop alone: {name} over speculative, {images} | {ratio(theirs, ours)} |"


def _calls(setup: Setup, window: int, repeats: int) -> Iterator[str]:
    """Yield rows of a table about whole calls from Python, pixels included."""
    pipeline = JanusPipeline.from_pretrained(CHECKPOINT, device="cpu")
    lines = Path("recipes/shapes/demo.jsonl").read_text("utf-8").splitlines()
    demo = [str(json.loads(line)["prompt"]) for line in lines]
    baseline = {"dola": False, "cfg_weight": 2.0}

    def others(turn: int, count: int) -> list[str]:
        return [setup.prompts[(turn * 37 + place) % len(setup.prompts)] for place in range(count)]

    cases: dict[str, tuple[Callable[[int], list[str]], int, dict[str, Any]]] = {
        "1 image": (partial(others, count=1), 1, baseline),
        "8 images": (partial(others, count=1), 8, baseline),
        "32 images": (partial(others, count=2), 16, baseline),
        "the demo's 32 images": (lambda _turn: demo, 4, {}),
    }

    def call(turn: int, name: str, speculative: int | None) -> Generation:
        prompts, images, settings = cases[name]
        return pipeline.generate(
            prompts(turn), parallel_size=images, speculative=speculative, progress=False, **settings
        )

    for name in cases:
        calls = {
            how: partial(call, name=name, speculative=size)
            for how, size in (("one at a time", None), ("speculative", window))
        }
        seconds = in_turns(calls, repeats, torch.device("cpu"))
        gain = ratio(seconds["one at a time"], seconds["speculative"])
        yield f"| a call: one at a time over speculative, {name} | {gain} |"


@torch.inference_mode()
def _lengths(setup: Setup, repeats: int) -> Iterator[str]:
    """Yield a row of a table about sequences of mixed lengths, one token at a time.

    64 sequences in 16 places, each of which ends where a code comes that many images have somewhere
    in their middle; batches in step go on to the end of their longest sequence, and no further.
    """
    scoring, layer = MODES["baseline, guidance 1"]
    keys = [(number % len(setup.ids), number) for number in range(64)]
    prompts = [setup.branches(prompt)[:1] for prompt, _ in keys]
    length = setup.janus.num_image_tokens
    loop = partial(
        token_generator, setup.janus, setup.janus.image_head, scoring, layer=layer,
        max_new_tokens=length,
    )  # fmt: skip
    in_step = loop()
    images = in_step(prompts, keys)
    lengths, code = max(
        ((_ends(images, code), code) for code in range(int(images.max()) + 1)),
        key=lambda found: float(found[0].double().std()),
    )
    refilled = loop(places=16, stop_ids=[code])
    print(f"lengths: {[*map(int, sorted(lengths))]}")

    def batches(_turn: int) -> None:
        for first in range(0, 64, 16):
            part = slice(first, first + 16)
            in_step.max_new_tokens = int(lengths[part].max())
            in_step(prompts[part], keys[part])

    seconds = in_turns(
        {"batches": batches, "refilled": lambda _turn: refilled(prompts, keys)},
        repeats, torch.device("cpu"),
    )  # fmt: skip
    gain = ratio(seconds["batches"], seconds["refilled"])
    yield f"| 64 sequences of mixed lengths: batches in step over refilled rows | {gain} |"


def _ends(images: Tensor, code: int) -> Tensor:
    """Return how many tokens each image has up to the first of a code, or all."""
    found = (images == code).int()
    return torch.where(found.any(dim=1), found.argmax(dim=1) + 1, images.shape[1])


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
