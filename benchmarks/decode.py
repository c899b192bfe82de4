"""``python -m benchmarks.decode``: the token loop against transformers' and a plain one.

All methods run in turns in one process on one model; the report contains ratios within a turn.
"""

import json
import platform
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from tqdm import tqdm

from benchmarks.methods import NAMES, PACKED, Method, make_methods, middle_layer, prepare
from benchmarks.models import Preset, random_janus, random_prompts
from benchmarks.stages import measure_scaling, measure_stages, plot
from lit_dola.janus.model import TransformersJanus
from lit_dola.verification.measure import (
    cache_bytes,
    copy_bandwidth,
    decoded_weights,
    timed,
)

RATIOS = (
    ("d", "c"),
    ("e", "c"),
    ("f", "c"),
    ("g", "c"),
    ("d", "h"),
    ("c", "i"),
    ("j", "c"),
    ("k", "d"),
    ("b", "d"),
    ("a", "c"),
    ("a_batch", "c"),
    ("a_batch", "i"),
)
DType = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(
    preset: Preset = "small",
    device: str = "cpu",
    dtype: DType = "float32",
    prompts: int = 8,
    images: int = 4,
    tokens: int = 576,
    repeats: int = 3,
    methods: list[str] | None = None,
    compile: bool = False,
    scaling: bool = False,
    output: Path | None = None,
) -> None:
    """Measure the token loop.

    Args:
        preset: Size of the model.
        device: cpu or cuda.
        dtype: Dtype of the model.
        prompts: Prompts, all of one length, so that every method can batch them.
        images: Images per prompt.
        tokens: Tokens per image; fewer than 576 for a quick look.
        repeats: Turns; in each, every method runs once.
        methods: Letters of the methods, see NAMES; null: all.
        compile: Whether to compile lit-dola's step.
        scaling: Whether to measure batches of 1 to 64 images, and each stage by itself, too.
        output: Folder for decode.json and, with matplotlib, scaling.png.
    """
    torch_device = torch.device(device)
    janus = random_janus(preset, tokens, DTYPES[dtype], torch_device)
    runs = make_methods(janus, random_prompts(prompts), images, compile)
    runs = {name: run for name, run in runs.items() if methods is None or name in methods}
    times = _run_in_turns(janus, runs, tokens, repeats, compile, torch_device)
    result = {
        "machine": _machine(torch_device),
        "settings": {
            "preset": preset, "dtype": dtype, "prompts": prompts, "images": images,
            "tokens": tokens, "repeats": repeats, "compile": compile,
            "parameters": decoded_weights(janus).numel,
        },
        "methods": {name: _summary(times[name], prompts * images, tokens) for name in runs},
        "ratios": {
            f"{one}/{other}": _spread([x / y for x, y in zip(times[one], times[other])])
            for one, other in RATIOS
            if one in times and other in times
        },
        "roofline": _roofline(janus, times, prompts * images, torch_device),
        "peak_memory_ratio_d/c": _peak_memory_ratio(preset, device, dtype, prompts * images),
    }  # fmt: skip
    if scaling:
        prepare(janus, "d", compile)
        result["scaling"] = measure_scaling(janus, middle_layer(janus), compile)
        result["stages"] = measure_stages(janus, middle_layer(janus), prompts, images, compile)
    _print(result)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "decode.json").write_text(json.dumps(result, indent=2) + "\n")
        if scaling:
            plot(result, output / "scaling.png")


def _run_in_turns(
    janus: TransformersJanus,
    runs: dict[str, Method],
    tokens: int,
    repeats: int,
    compile: bool,
    device: torch.device,
) -> dict[str, list[float]]:
    """Return the seconds of each method's runs; the warm-up draws two tokens, or all to compile."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with tqdm(total=(repeats + 1) * len(runs), disable=None) as bar:
        for turn in range(repeats + 1):
            for name, run in runs.items():
                bar.set_description(NAMES[name])
                prepare(janus, name, compile)
                compiled = compile and name in (*PACKED, "g")
                count = tokens if turn or compiled else min(2, tokens)
                seconds = timed(partial(run, count), device)
                if turn:
                    times[name].append(seconds)
                bar.update()
    return times


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _summary(seconds: list[float], images: int, tokens: int) -> dict[str, Any]:
    return {
        "images_per_second": _spread([images / each for each in seconds]),
        "milliseconds_per_token_of_all_images": _spread([1e3 * each / tokens for each in seconds]),
    }


def _roofline(
    janus: TransformersJanus, times: dict[str, list[float]], images: int, device: torch.device
) -> dict[str, Any]:
    """Return how long a step's reads take at the bandwidth of a large copy on this machine."""
    bandwidth = copy_bandwidth(device)
    tokens, weights = janus.num_image_tokens, decoded_weights(janus).nbytes
    cache = cache_bytes(janus, 2 * images, tokens)
    steps = {name: median(times[name]) / tokens for name in ("c", "d") if name in times}
    return {
        "copy_gigabytes_per_second": bandwidth / 1e9,
        "milliseconds_to_read_the_weights": 1e3 * weights / bandwidth,
        "milliseconds_to_read_weights_and_cache": 1e3 * (weights + cache) / bandwidth,
        "share_of_a_step_that_reads_weights": {
            name: weights / bandwidth / step for name, step in steps.items()
        },
        "step_over_reading_weights_and_cache": {
            name: step * bandwidth / (weights + cache) for name, step in steps.items()
        },
    }


def _peak_memory_ratio(preset: str, device: str, dtype: str, images: int) -> float:
    """Return the peak memory with DoLa divided by that without, each in its own process."""
    peaks = []
    for name in ("d", "c"):
        code = f"from benchmarks.decode import print_peak; print_peak({preset!r}, {device!r}, "
        code += f"{dtype!r}, {images}, {name!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    return peaks[0] / peaks[1]


def print_peak(preset: Preset, device: str, dtype: str, images: int, name: str) -> None:
    """Run one method for a few tokens with the cache of 576, and print the peak memory."""
    janus = random_janus(preset, 576, DTYPES[dtype], torch.device(device))
    generate = make_methods(janus, random_prompts(1, length=600), images, compile=False)[name]
    generate(8)  # the long prompt stands for the tokens that are left out
    if device == "cpu":
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    else:
        print(torch.cuda.max_memory_allocated())


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _print(result: dict[str, Any]) -> None:
    """Print the tables, in Markdown."""
    print("| method | images per second | ms per token of all images |\n| --- | --- | --- |")
    for name, summary in result["methods"].items():
        cells = " | ".join(
            "{median:.4g} ({min:.4g} to {max:.4g})".format(**x) for x in summary.values()
        )
        print(f"| ({name}) {NAMES[name]} | {cells} |")
    print("\n| ratio of times | median (min to max) |\n| --- | --- |")
    for name, ratio in result["ratios"].items():
        print("| {} | {median:.3f} ({min:.3f} to {max:.3f}) |".format(name, **ratio))
    print(f"| peak memory d/c | {result['peak_memory_ratio_d/c']:.3f} |\n")
    print(json.dumps({key: result[key] for key in ("machine", "settings", "roofline")}))
    for key in ("scaling", "stages"):
        if key in result:
            print(json.dumps({key: result[key]}))


if __name__ == "__main__":
    auto_cli(main)
