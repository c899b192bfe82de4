"""The module of a task that draws tokens: sampling, the token loop, batches that fit the memory."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cached_property
from logging import getLogger
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities.memory import garbage_collection_cuda
from torch import nn

from lit_dola.data.base import shards_the_model
from lit_dola.data.plan import RunPlan
from lit_dola.decoding.cache import images_that_fit
from lit_dola.decoding.guidance import ApcPolicy
from lit_dola.decoding.loop import TokenGenerator
from lit_dola.decoding.prefill import Branches
from lit_dola.decoding.sampling import EntropyTemperature
from lit_dola.decoding.scoring import ContrastForm, Scoring
from lit_dola.errors import UserError, about_setting
from lit_dola.janus.checkpoint import Checkpoint, ModelFolder
from lit_dola.janus.lens import LensFile, LensHead
from lit_dola.janus.packing import pack_weights, unpack_weights
from lit_dola.settings.checks import given_path
from lit_dola.settings.numbers import (
    GuidanceScale,
    NonNegativeFinite,
    PositiveFinite,
    PositiveFraction,
    Seed,
)
from lit_dola.tasks.base import EXACT, JanusModule
from lit_dola.tasks.compiled import (
    choose_step,
    fault_of,
    give_up,
    is_out_of_memory,
    use_plain_attention,
)

_log = getLogger(__name__)
_ROUNDS = 4
"""Batches that share a pool of rows: the last sequences of it find no one to take their rows."""
_HALVED = "; in %s they may differ slightly from those of whole batches: see their records"

Item = TypeVar("Item")
Result = TypeVar("Result")


class DecodingModule(JanusModule):
    """Module of a task that draws tokens.

    A task creates its token loop in :meth:`make_generator`, and calls :meth:`run_in_parts` in
    ``predict_step``.

    Args:
        apc: Policy for which tokens may be drawn when the head sets of the conditional and
            unconditional branch differ: cond, intersection, union, or per_branch (the old script's
            masking).
        cfg_weight: Guidance scale of classifier-free guidance; 1 is no guidance.
        temperature: Divides the scores before a token is drawn; 0 is greedy.
        top_k: Draw from the k most probable tokens only.
        top_p: Draw from the smallest set of most probable tokens with at least this mass.
        min_p: Draw from tokens with at least this share of the top probability (min-p sampling),
            after guidance and temperature.
        entropy_temperature: ``[span, scale, floor]``: multiplies the temperature by
            ``span * exp(-entropy / scale) + floor``, with the entropy of the scores in nats
            (arXiv 2510.09012; its authors use [2.5, 3, 0.6]).
        contrast: Form of the contrast. dola: the middle layer is subtracted in both branches, then
            guidance follows. guide: what the final layer adds to the middle one counts ``beta``
            times on top of guidance, or in its place with ``cfg_weight`` 1, which takes one row per
            image; for a trained readout (``lens``).
        beta: With ``contrast`` guide, how much the difference of the layers counts: 0 leaves the
            head set alone, 1 doubles it. ``strength`` does not apply.
        lens: File of trained readouts, as ``main.py lens`` writes it: the middle layer is read
            through the one that was trained for it, whatever ``mid_norm``; null: through the head
            alone.
        seed: A result depends only on the seed, its entry's index in the file and its own index;
            not on its batch, the number of devices or the order.
        compile: Compile the decoding step, with CUDA graphs on a GPU; auto: on a GPU, if it works
            there: it is tried before the first batch.
        settings: Settings of all tasks.
    """

    shared = (*JanusModule.shared, "seed")
    head_name: ClassVar[LensHead] = "image"
    """The head that tokens are drawn with."""
    recommendable = (
        "layer_ratio", "layer", *(it.name for it in fields(Scoring) if it.name != "seed")
    )  # fmt: skip
    generator: TokenGenerator
    """The token loop, once prediction starts."""

    def __init__(
        self,
        *,
        apc: ApcPolicy = "cond",
        cfg_weight: GuidanceScale,
        temperature: NonNegativeFinite,
        top_k: PositiveInt | None = None,
        top_p: PositiveFraction | None = None,
        min_p: PositiveFraction | None = None,
        entropy_temperature: tuple[NonNegativeFinite, PositiveFinite, NonNegativeFinite]
        | None = None,
        contrast: ContrastForm = "dola",
        beta: NonNegativeFinite = 1.0,
        lens: str | None = None,
        seed: Seed = 0,
        compile: bool | Literal["auto"] = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.lens_path = None if lens is None else given_path("model.lens", lens)
        self.compile_step = compile
        self.graphs = False
        """A compiled step uses CUDA graphs on a GPU."""
        self.fault: str | None = None
        """Why the step is not compiled, although it should be."""
        self.at_once: int | None = None
        """Requests per part, once a batch has run out of memory."""
        self.dola_scoring = self._make_scoring()
        """The settings, as if DoLa were on."""
        self.scoring = self.dola_scoring if self.dola else self.dola_scoring.baseline

    def _make_scoring(self) -> Scoring:
        values = {field.name: self.hparams[field.name] for field in fields(Scoring)}
        if values["entropy_temperature"]:
            values["entropy_temperature"] = EntropyTemperature(*values["entropy_temperature"])
        return Scoring(**values)

    def make_generator(self) -> TokenGenerator:
        """Return the task's token loop, with an empty cache."""
        raise NotImplementedError

    def trial_prompt(self) -> Branches:
        """Return a prompt on which a compiled step is tried."""
        raise NotImplementedError

    @cached_property
    def lens(self) -> LensFile | None:
        """The trained readouts, if the settings name some; their header is read once."""
        if self.lens_path is None or not self.dola:
            return None
        with about_setting("model.lens"):
            return LensFile.open(self.lens_path)

    def check(self, model: ModelFolder) -> None:
        """Check the settings against the model."""
        super().check(model)
        if self.dola and self.dola_scoring.guides and self.dola_scoring.apc == "per_branch":
            raise UserError(
                "per_branch does not apply to the contrast guide", "cond", setting="model.apc"
            )
        if self.lens is not None:
            assert isinstance(model, Checkpoint)
            layer = self.dola_layer(model)
            with about_setting("model.lens"):
                self.lens.check(model, self.head_name, layer)

    def readout(self) -> nn.Linear | None:
        """Return the trained readout of the middle layer, in the dtype and on the device."""
        if self.lens is None:
            return None
        weight = self.janus.language_model.embed_tokens.weight
        layer = self.dola_layer(self.plan.checkpoint)
        return self.lens.readout(layer, weight.dtype, weight.device)

    def record_settings(self, plan: RunPlan, precision: str) -> dict[str, Any]:
        """Return every setting that shapes a result; of a lens, also what it holds."""
        settings = super().record_settings(plan, precision)
        return settings if self.lens is None else {**settings, "lens_digest": self.lens.digest}

    @property
    def branches(self) -> int:
        """Rows per sequence: the conditional branch, and with guidance the unconditional one."""
        return 2 if self.scoring.uses_guidance else 1

    def generator_options(self) -> dict[str, Any]:
        """Return the arguments of a token loop that do not depend on the task."""
        return {
            "layer": self.middle_layer(self.plan.checkpoint),
            "max_new_tokens": self.max_new_tokens,
            "max_prompt_length": self.plan.longest_prompt,
            "compile": self.compiles,
            "graphs": self.graphs,
            "share_prefill": not shards_the_model(self.trainer),
            "fill_to": self.fill_to,
            "lens": self.readout(),
            "logprobs": self.logprobs,
        }

    def inference_mode(self) -> torch.inference_mode:
        """Return the context of a token loop; parameters sharded by FSDP do not survive its own."""
        return torch.inference_mode(
            torch.is_inference_mode_enabled() and not shards_the_model(self.trainer)
        )

    def setup(self, stage: str) -> None:
        """Check the settings before anything is loaded."""
        super().setup(stage)
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        if on_cpu and self.quantize and self.compile_step is True:
            raise UserError(
                "a compiled step with quantized weights hangs on a CPU (torch 2.13)",
                "false",
                setting="model.compile",
            )

    def load_model(self, plan: RunPlan) -> None:
        """Load the model, and decide how many sequences a batch has."""
        super().load_model(plan)
        language_model = self.janus.language_model
        if plan.batch_size is None:
            slots = plan.longest_prompt + self.max_new_tokens
            weight = language_model.embed_tokens.weight
            fitting = images_that_fit(language_model.config, slots, weight, self.branches)
            on_all_ranks = self.trainer.strategy.reduce(
                torch.tensor(fitting, device=weight.device), reduce_op="min"
            )
            plan.batch_size = min(int(on_all_ranks), self.most_at_once(plan))
        plan.rounds = _ROUNDS if self.refills else 1

    def most_at_once(self, plan: RunPlan) -> int:
        """Return how many requests of a rank there are at most, which a batch need not exceed."""
        return math.ceil(len(plan.requests) / self.trainer.world_size)

    def on_predict_start(self) -> None:
        """Prepare the token loop."""
        # By now the precision plugin has cast the whole module.
        self.janus.restore_float32()
        self.graphs = self.device.type == "cuda"
        if self.compiles:
            choose_step(self)
        else:
            self.renew_generator()

    def renew_generator(self) -> None:
        """Make the token loop again, without what it has cached and compiled."""
        if hasattr(self, "generator"):
            del self.generator
            torch.compiler.reset()  # frees the memory of CUDA graphs
            garbage_collection_cuda()
        if self.compiles:
            unpack_weights(self.janus)
        else:
            pack_weights(self.janus)
        self.generator = self.make_generator()
        for call in self.on_decision:
            call()

    def on_predict_end(self) -> None:
        """Free the token loop and its cache: an evaluation keeps the models of all its variants."""
        del self.generator

    def call_on_step(self, tokens: int) -> None:
        """Report progress: tokens drawn per sequence."""
        for call in self.on_step:
            call(tokens)

    @property
    def compiles(self) -> bool:
        """Return whether the decoding step is compiled."""
        if self.fault is not None:
            return False
        if self.compile_step != "auto":
            return self.compile_step
        if self.plan.compile is not None:
            return self.plan.compile
        return self.compiles_by_default()

    def compiles_by_default(self) -> bool:
        """Return whether ``auto`` means a compiled step."""
        return self.device.type == "cuda" and not shards_the_model(self.trainer)

    def step_name(self) -> str:
        """Return how decoding steps run."""
        if not self.compiles:
            return "as written"
        return "compiled, CUDA graphs" if self.graphs else "compiled"

    def take_batching(self, plan: RunPlan, precision: str, earlier: Mapping[str, Any]) -> None:
        """In low precision, resolve ``auto`` as the run that is continued did."""
        if precision in EXACT:
            return
        size, compiled = (earlier.get(name) for name in (self.batch_setting, "compile"))
        if plan.batch_size is None and type(size) is int and size > 0:
            plan.batch_size = size
        if type(compiled) is bool:
            plan.compile = compiled

    @property
    def refills(self) -> bool:
        """Return whether the row of a complete sequence takes the next one."""
        return False

    @property
    def places(self) -> int:
        """Number of sequences that are decoded at once."""
        return self.at_once or self.plan.batch_size or 1

    @property
    def fill_to(self) -> int:
        """Number of sequences that a smaller batch is filled up to."""
        return 1 if self.is_exact or self.device.type != "cuda" else self.places

    def run_in_parts(self, batch: list[Item], run: Callable[[list[Item]], Result]) -> list[Result]:
        """Run a batch as a whole, or in smaller parts if it does not fit into memory."""
        results: list[Result] = []
        rest, halved = batch, False
        while rest:
            count = len(rest) if self.refills else self.at_once or len(rest)
            result = self._run_if_it_fits(rest[:count], run)
            if result is None:
                halved = True
                continue
            if halved:
                self.warn_of_halving()
                halved = False
            results.append(result)
            rest = rest[count:]
        return results

    def warn_of_halving(self) -> None:
        """Warn that batches are smaller than they should be, for lack of memory."""
        _log.warning(
            "out of memory: continuing with at most %d %s at once%s",
            self.at_once,
            self.items,
            "" if self.is_exact else _HALVED % self.trainer.precision,
        )

    def _run_if_it_fits(
        self, part: list[Item], run: Callable[[list[Item]], Result]
    ) -> Result | None:
        """Return None if the part does not fit into memory."""
        items = max(min(len(part), self.places), self.fill_to)
        try:
            return run(part)
        except RuntimeError as error:
            plain = use_plain_attention(error)
            fault = None if plain else fault_of(error)
            halve = not plain and fault is None
            if halve:
                self._check_halving(error, items)
        # After the handler, because the error keeps the tensors of its frames alive.
        if fault is not None:
            give_up(self, fault)
        if not halve:
            return self._run_if_it_fits(part, run)
        self.at_once = items // 2
        self.renew_generator()
        return None

    def _check_halving(self, error: RuntimeError, items: int) -> None:
        """Raise an error that a smaller batch does not help against."""
        if not is_out_of_memory(error):
            raise error
        if items == 1 or shards_the_model(self.trainer):  # ranks must stay in step
            raise self.out_of_memory(f"{items} {self.items.rstrip('s')}(s)") from error
