"""``python -m benchmarks.speculative``: passes and time of speculative Jacobi decoding.

On the trained small Janus, since what can be guessed depends on the model. Times are ratios of
methods that run in turns; float32.
"""

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
from jsonargparse import auto_cli
from torch import Tensor
from tqdm import tqdm
from transformers import JanusForConditionalGeneration

from benchmarks.models import make_scoring
from lit_dola.decoding.loop import TokenGenerator, cfg_pair
from lit_dola.decoding.pool import token_generator
from lit_dola.decoding.prefill import Branches
from lit_dola.decoding.scoring import Scoring
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import load_janus
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.verification.measure import timed

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
        self.ids = [encoder.encode(json.loads(line)["prompt"]) for line in lines[::step][:prompts]]

    def generator(self, mode: str, window: int | None) -> TokenGenerator:
        """Return a token loop, speculative with a window."""
        scoring, layer = MODES[mode]
        return token_generator(
            self.janus, self.janus.image_head, scoring, window=window, layer=layer,
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


def main(prompts: int = 280, images: int = 2, window: int = 16, repeats: int = 5) -> None:
    """Compare speculative with one-at-a-time decoding.

    Args:
        prompts: Prompts whose tokens and passes are compared.
        images: Images of each.
        window: Tokens per pass.
        repeats: Turns of the times, each with another prompt.
    """
    setup = Setup(prompts)
    print("| | equal tokens | mean passes of 144 | least | most |\n| --- | --- | --- | --- | --- |")
    for mode in MODES:
        equal, passes = _compare(setup, mode, images, window)
        print(
            f"| {mode} | {equal} of {len(passes)} | {passes.float().mean():.1f} |"
            f" {passes.min()} | {passes.max()} |"
        )
    print("\n| ratio of times | median (min to max) |\n| --- | --- |")
    for name, ratios in _times(setup, window, repeats).items():
        print(f"| {name} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")


@torch.inference_mode()
def _compare(setup: Setup, mode: str, images: int, window: int) -> tuple[int, Tensor]:
    """Return how many images have equal tokens, and the passes of each."""
    keys = list(product(range(len(setup.ids)), range(images)))
    plain, fast = setup.generator(mode, None), setup.generator(mode, window)
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
def _times(setup: Setup, window: int, repeats: int) -> dict[str, list[float]]:
    """Return the ratios of times, one per turn."""
    mode = "baseline, guidance 2"
    plain, fast = setup.generator(mode, None), setup.generator(mode, window)

    def run(generate: TokenGenerator, prompt: int, images: int) -> Callable[[], Tensor]:
        keys = [(prompt, image) for image in range(images)]
        return lambda: generate([setup.branches(prompt)] * images, keys)

    found: dict[str, list[float]] = {}
    for turn in tqdm(range(repeats + 1), desc="times", disable=None, leave=False):
        prompt = turn * 37 % len(setup.ids)
        for images in (1, 8):
            methods = {"one at a time": run(plain, prompt, images)}
            if images == 1:
                methods["transformers"] = partial(setup.transformers, prompt)
            ours = timed(run(fast, prompt, images), torch.device("cpu"))
            for name, method in methods.items():
                ratio = timed(method, torch.device("cpu")) / ours
                if turn:  # the first warms up
                    of = f"{name} over speculative, {images} image{'s' * (images > 1)}"
                    found.setdefault(of, []).append(ratio)
    return found


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
