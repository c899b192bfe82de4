"""``python -m benchmarks.profile``: the shares of a decoding step on a CPU, by kind of work.

A step with DoLa as written, seen by torch's profiler. What no operation of torch accounts for is
Python, and the profiler itself.
"""

import time
from statistics import median

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.decode import DTYPES, DType
from benchmarks.methods import middle_layer, prepare
from benchmarks.models import PAD, Preset, make_scoring, random_janus, random_prompts
from lit_dola.decoding.loop import TokenGenerator, cfg_pair
from lit_dola.decoding.sampling import gumbel_noise
from lit_dola.janus.model import TransformersJanus
from lit_dola.verification.measure import cache_bytes, copy_bandwidth, timed

_CPU = torch.device("cpu")
_STEPS = 8
_KINDS = {
    "aten::mm": "products",
    "aten::addmm": "products",
    "aten::bmm": "products",
    "mkldnn::_linear_pointwise": "products",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "aten::index_copy_": "cache writes",
}
KINDS = ("products", "attention", "cache writes", "noise", "other operations", "Python")


def main(
    presets: list[Preset] | None = None,
    rows: list[int] | None = None,
    lengths: list[int] | None = None,
    dtype: DType = "float32",
) -> None:
    """Print a table of shares, and attention over a copy of the keys and values that it reads.

    Args:
        presets: Sizes of the model; null: tiny and small.
        rows: Rows of a batch, two per image; null: 2, 8 and 64.
        lengths: Tokens that a row has when it is measured; null: 100 and 500.
        dtype: Dtype of the model.
    """
    print(f"| model | rows | tokens | {' | '.join(KINDS)} | attention / copy |")
    print("| --- | ---: | ---: |" + " ---: |" * (len(KINDS) + 1))
    for preset in presets or ["tiny", "small"]:
        janus = random_janus(preset, 1 + _STEPS, DTYPES[dtype], _CPU)
        prepare(janus, "d", compile=False)
        for count in rows or [2, 8, 64]:
            for length in lengths or [100, 500]:
                found = _profile(janus, count // 2, length)
                step = sum(found.values())
                shares = " | ".join(f"{found[kind] / step:.0%}" for kind in KINDS)
                read = cache_bytes(janus, count, 2 * (length - 24))  # which counts half of them
                copied = 2 * read / copy_bandwidth(_CPU)
                ratio = f"{found['attention'] / copied:.2f}"
                print(f"| {preset} | {count} | {length} | {shares} | {ratio} |", flush=True)


def _profile(janus: TransformersJanus, images: int, length: int) -> dict[str, float]:
    """Return the seconds of a step by kind of work."""
    (prompt,) = random_prompts(1, length=length)
    generate = TokenGenerator(
        janus, janus.image_head, make_scoring(), layer=middle_layer(janus),
        max_new_tokens=1 + _STEPS,
    )  # fmt: skip
    times: list[float] = []
    seen = profile(activities=[ProfilerActivity.CPU])

    def look(step: int, _tokens: Tensor) -> None:
        if step == 1:  # after the prefill
            seen.start()
        times.append(time.perf_counter())
        if step == 1 + _STEPS:
            seen.stop()

    batch = [cfg_pair(prompt, PAD)] * images
    for _ in range(2):  # the first one warms up
        times.clear()
        seen = profile(activities=[ProfilerActivity.CPU])
        generate(batch, [(0, image) for image in range(images)], look)
    found = dict.fromkeys(KINDS, 0.0)
    for event in seen.key_averages():
        kind = _KINDS.get(event.key, "other operations")
        found[kind] += event.self_cpu_time_total / 1e6 / _STEPS
    found["Python"] = (times[-1] - times[0]) / _STEPS - sum(found.values())
    streams, vocab = torch.arange(images), janus.image_head.linear.out_features
    found["noise"] = median(timed(lambda: gumbel_noise(streams, 1, vocab), _CPU) for _ in range(9))
    found["other operations"] -= found["noise"]
    return found


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
