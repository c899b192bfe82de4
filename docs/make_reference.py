"""Makes the reference from docstrings: ``python -m docs.make_reference > docs/reference.md``."""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import yaml
from docstring_parser import Docstring, parse

from docs.make_schema import task_of
from lit_dola import dola, pipeline
from lit_dola.apps.playground import play
from lit_dola.apps.server import serve
from lit_dola.cli.arguments import ENV_PREFIX
from lit_dola.cli.plain import compare
from lit_dola.cli.tasks import PASSED
from lit_dola.decoding import guidance, inspection, loop, sampling
from lit_dola.evaluation.evaluate import evaluate
from lit_dola.janus import checkpoint, loading, model
from lit_dola.janus.lens import LensFile
from lit_dola.reports import generation
from lit_dola.settings.declared import Setting, settings_of
from lit_dola.tasks import preview
from lit_dola.training.lens import lens
from lit_dola.verification.verify import verify

FUNCTIONS: dict[str, list[Any]] = {
    "`lit_dola.JanusPipeline`": [
        pipeline.JanusPipeline.from_pretrained,
        pipeline.JanusPipeline.generate,
        pipeline.JanusPipeline.generate_each,
        pipeline.JanusPipeline.answer,
        pipeline.JanusPipeline.rank,
        pipeline.JanusPipeline.decode,
        pipeline.JanusPipeline.to,
        generation.Generation.save,
        generation.Generation.encode,
        generation.Generation.figure,
        preview.ImageStep.preview,
    ],
    "`lit_dola.dola`: the contrast": [
        dola.contrast_with_apc_from_logits,
        dola.dola_static_from_hidden,
        dola.pick_static_layer_index,
        dola.log_contrast,
        dola.apc_mask,
    ],
    "`lit_dola.decoding.guidance`: the contrast and classifier-free guidance": [
        guidance.classifier_free_guidance,
        guidance.allowed_tokens,
        guidance.guided_dola,
        guidance.guided_dola_from_features,
        guidance.dola_from_features,
        guidance.guide_by_layer,
        guidance.guide_from_features,
    ],
    "`lit_dola.decoding.sampling`: the draw": [
        sampling.stream_keys,
        sampling.gumbel_noise,
        sampling.Sampling,
        sampling.Sampling.draw,
    ],
    "`lit_dola.decoding.loop`: the token loop": [
        loop.TokenGenerator,
        loop.TokenGenerator.__call__,
        loop.cfg_pair,
    ],
    "`lit_dola.decoding.inspection`: where DoLa changed an image": [inspection.inspect_tokens],
    "`lit_dola.janus`: a checkpoint as a model": [
        checkpoint.Checkpoint.open,
        loading.load_janus,
        LensFile.open,
        LensFile.readout,
        model.Head,
    ],
}


def main() -> str:
    """Return the whole page."""
    parts = [
        "# Reference",
        "Generated from docstrings by `python -m docs.make_reference > docs/reference.md`.",
        "## Settings",
        "Each is a flag (`--model.alpha 0.2`), a key in YAML, and an environment variable"
        f" (`{ENV_PREFIX}_PREDICT__MODEL__ALPHA=0.2`). Flags override files, and files override"
        " the environment. `--print_config` prints the settings that a run would use. `trainer`"
        " contains [Lightning's own settings]"
        "(https://lightning.ai/docs/pytorch/stable/common/trainer.html).",
    ]
    parts += _groups("predict", "")
    parts += [
        "### `evaluate` alone",
        _settings(evaluate, "", PASSED),
        *_groups("answer", " of `answer`"),
        *_groups("rank", " of `rank`"),
        "### `play` alone",
        _settings(play, "", PASSED),
        "### `serve` alone",
        _settings(serve, "", PASSED),
        "### `verify` alone",
        _settings(verify, "", PASSED),
        *_groups("lens", " of `lens`"),
        "### `lens` alone",
        _settings(lens, "", PASSED),
        "### `compare`",
        "`compare RUN RUN ... --output PAGE`",
        _settings(compare, "", {"runs"}),
        "## Python",
    ]
    for title, functions in FUNCTIONS.items():
        parts += [f"### {title}", *map(_function, functions)]
    return "\n\n".join(parts)


def _groups(task: str, of: str) -> list[str]:
    """Return a heading and a table for each group of a task's settings."""
    parts = []
    for group, owner in task_of(task).groups.items():
        parts += [f"### `{group}`{of}", _settings(owner, f"{group}.", skip={"self"})]
    return parts


def _settings(owner: Any, prefix: str, skip: set[Any]) -> str:
    """Return a table of the parameters of a class or function."""
    rows = ["| setting | default | description |", "| --- | --- | --- |"]
    for name, setting in settings_of(owner).items():
        if name not in skip:
            cells = (f"`{prefix}{name}`", _default(setting), _inline(setting.description))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _default(parameter: Setting) -> str:
    if parameter.default is inspect.Parameter.empty:
        return "required"
    return f"`{yaml.safe_dump(parameter.default, width=math.inf).splitlines()[0]}`"


def _function(function: Callable[..., Any]) -> str:
    """Return a function's signature and its docstring as Markdown."""
    docstring = _docstring(function)
    name = function.__qualname__.removesuffix(".__call__")
    name = name.replace("LoadedJanus.", "JanusPipeline.")  # which inherits it
    parameters = [
        parameter.replace(annotation=parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]
    call = f"{name}{inspect.Signature(parameters)}"
    parts = [f"#### `{call}`", _inline(docstring.short_description)]
    if docstring.long_description:
        parts.append(_inline(docstring.long_description))
    items = [f"- `{param.arg_name}`: {_inline(param.description)}" for param in docstring.params]
    if docstring.returns:
        items.append(f"- returns: {_inline(docstring.returns.description)}")
    items += [f"- raises `{e.type_name}`: {_inline(e.description)}" for e in docstring.raises]
    return "\n\n".join([*parts, "\n".join(items)] if items else parts)


def _docstring(owner: Callable[..., Any]) -> Docstring:
    return parse(inspect.getdoc(owner) or "")


def _inline(text: str | None) -> str:
    """Return a docstring as one line of Markdown."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text or "")
    return " ".join(text.replace("``", "`").split())


if __name__ == "__main__":
    print(main())
