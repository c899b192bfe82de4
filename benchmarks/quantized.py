"""``python -m benchmarks.quantized``: weights in fewer bits against those that they stand for.

The same model, as it is (on a CPU with its weights packed, as in a run) and quantized, draws tokens
in turns in one process. Needs torchao.
"""

from collections.abc import Callable
from typing import get_args

import torch
from jsonargparse import auto_cli
from torch import Tensor

from benchmarks.decode import DTYPES, DType
from benchmarks.methods import lit_dola, middle_layer, prepare
from benchmarks.models import Preset, random_janus, random_prompts
from benchmarks.turns import in_turns, ratio
from lit_dola.janus.model import TransformersJanus, linear_layers
from lit_dola.janus.quantization import Quantization, quantize_weights

KINDS = get_args(Quantization)


def main(
    preset: Preset = "1b",
    device: str = "cpu",
    dtype: DType = "bfloat16",
    images: list[int] | None = None,
    tokens: int = 24,
    repeats: int = 3,
    kinds: list[Quantization] | None = None,
) -> None:
    """Measure the token loop with DoLa, and how far the products of the layers are off.

    Args:
        preset: Size of the model.
        device: cpu or cuda.
        dtype: Dtype of the model.
        images: Sizes of batches; null: 1, 4 and 16 images.
        tokens: Tokens per image.
        repeats: Turns.
        kinds: Kinds of quantization; null: all.
    """
    where, kinds = torch.device(device), kinds or [*KINDS]
    models = {"as it is": random_janus(preset, tokens, DTYPES[dtype], where)}
    for kind in kinds:
        models[kind] = random_janus(preset, tokens, DTYPES[dtype], where)
        print(f"{kind}: {error_of_products(models[kind], kind, where):.1%} off", flush=True)
    prepare(models["as it is"], "d", compile=False)
    print("\n| images | time as it is over time of | ratio |\n| --- | --- | --- |")
    for count in images or [1, 4, 16]:
        calls = {name: draw(janus, count, tokens) for name, janus in models.items()}
        seconds = in_turns(calls, repeats, where)
        for kind in kinds:
            print(f"| {count} | {kind} | {ratio(seconds['as it is'], seconds[kind])} |", flush=True)


def draw(janus: TransformersJanus, images: int, tokens: int) -> Callable[[int], Tensor]:
    """Return a call that draws tokens of so many images of one prompt."""
    run = lit_dola(janus, random_prompts(1), images, middle_layer(janus), compile=False)
    return lambda turn: run(tokens)


def error_of_products(janus: TransformersJanus, kind: Quantization, device: torch.device) -> float:
    """Quantize a model; return the mean relative error of the products of its layers.

    Both products are of the same inputs, of 64 rows of standard normal numbers.
    """
    layers = linear_layers(janus)
    inputs = [torch.randn(64, layer.in_features) for layer in layers]
    rows = [each.to(device, layer.weight.dtype) for each, layer in zip(inputs, layers)]
    plain = [layer(each).float() for layer, each in zip(layers, rows)]
    quantize_weights(janus, kind, device)
    ours = [layer(each).float() for layer, each in zip(layers, rows)]
    errors = [(one - other).norm() / one.norm() for one, other in zip(plain, ours)]
    return float(torch.stack(errors).mean())


if __name__ == "__main__":
    with torch.inference_mode():
        auto_cli(main, as_positional=False)
