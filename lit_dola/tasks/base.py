"""What every task on a Janus needs: its checkpoint, middle layer, loading and sharding."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from logging import getLogger
from typing import Any, ClassVar, Literal, Self, get_type_hints

import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.utilities.memory import is_oom_error

from lit_dola.data.base import shards_the_model
from lit_dola.data.old_names import notes, rename_settings
from lit_dola.data.plan import RunPlan
from lit_dola.decoding.cache import images_that_fit
from lit_dola.decoding.guidance import Scoring
from lit_dola.decoding.sampling import EntropyTemperature
from lit_dola.dola import pick_static_layer_index
from lit_dola.errors import RankError, UserError, printable, refuse_null, suggestion
from lit_dola.janus.checkpoint import Checkpoint, ModelFolder
from lit_dola.janus.model import Backbone
from lit_dola.janus.packing import pack_weights, unpack_weights
from lit_dola.janus.quantization import Quantization
from lit_dola.tasks.batches import EXACT, BatchModule
from lit_dola.tasks.expected import expected

_log = getLogger(__name__)
_PRECISIONS = ("32-true", "bf16-true", "16-true", "64-true")
_NOT_RECORDED = {"parallel_size", "inspect"}
"""Settings that do not change any single result."""
_BATCHING = {"images_per_batch", "questions_per_batch", "compile"}
_WRONG = re.compile(r'Parser key "(\w+)"')
"""How jsonargparse names a setting that is wrong."""
_ROUNDING = {*_BATCHING, "speculative"}
"""Settings that change how a result is rounded: only in low precision this changes the result."""


class JanusModule(BatchModule):
    """Loads a Janus, checks it against the settings, and records them.

    A task subclasses this, loads its parts of the model in :meth:`load`, makes its token loop in
    :meth:`make_generator`, and calls :meth:`run_in_parts` in its ``predict_step``.

    Args:
        model_path: As the setting ``model.model_path``.
        dola: As the setting ``model.dola``.
        layer_ratio: As the setting ``model.layer_ratio``.
        layer: As the setting ``model.layer``.
        compile: As the setting ``model.compile``.
        quantize: As the setting ``model.quantize``.
    """

    shared: ClassVar[tuple[str, ...]] = ("model_path", "roles", "quantize", "seed")
    """Settings that all variants of an evaluation share."""
    janus: Backbone
    """The model, once it is loaded."""

    def __init__(
        self,
        model_path: str,
        *,
        dola: bool,
        layer_ratio: float,
        layer: int | None,
        compile: bool | Literal["auto"],
        quantize: Quantization | None,
    ) -> None:
        super().__init__(model_path, compile)
        self.dola = dola
        self.layer_ratio = layer_ratio
        self.layer = layer
        self.quantize = quantize
        self.on_step: list[Callable[[int], None]] = []
        """Called after each decoding step with the number of tokens drawn per sequence."""
        self.before_loading: list[Callable[[], None]] = []
        """Called when all settings are known to fit and the model is about to be loaded."""

    @classmethod
    def checked(cls, settings: Mapping[str, Any]) -> Self:
        """Create a model from settings by name, each checked as on the command line.

        Raises:
            UserError: If a setting is unknown or out of range.
        """
        for note in notes(settings):
            _log.warning(note)
        settings = rename_settings(settings)
        parser = ArgumentParser(exit_on_error=False)
        known = parser.add_class_arguments(cls)
        for name in settings.keys() - set(known):
            raise UserError(f"{name}: not a setting of the model{suggestion(name, known)}")
        refuse_null(cls, settings)
        try:
            return cls(**parser.parse_object(settings).as_dict())
        except ArgumentError as error:
            wrong = _WRONG.search(str(error))
            if not wrong or wrong[1] not in settings:
                raise UserError(" ".join(str(error).split())) from error
            name = wrong[1]
            hint = get_type_hints(cls.__init__)[name]
            raise UserError(
                f"{name}: {settings[name]!r}; expected {expected(name, hint)}"
            ) from error

    def make_scoring(self) -> Scoring:
        """Return how logits become scores and tokens, from the settings of the same names."""
        values = {field.name: self.hparams[field.name] for field in fields(Scoring)}
        if values["entropy_temperature"]:
            values["entropy_temperature"] = EntropyTemperature(*values["entropy_temperature"])
        scoring = Scoring(**values)
        return scoring if self.dola else scoring.baseline

    def take_model(self, other: Self) -> None:
        """Use the loaded model of another module of the same checkpoint, if it has one."""
        if hasattr(other, "janus"):
            self.janus = other.janus

    def middle_layer(self, model: ModelFolder) -> int | None:
        """Return the index of the middle layer in ``hidden_states``, or None with DoLa off.

        Raises:
            UserError: If the model has no such layer.
        """
        if not self.dola:
            return None
        num_layers = model.num_layers
        if self.layer is None:
            return pick_static_layer_index(num_layers + 1, True, self.layer_ratio)
        if self.layer < num_layers:
            return self.layer
        raise UserError(
            f"model.layer: {self.layer} is not a middle layer of {self.model_path}; expected 1 to"
            f" {num_layers - 1}, its final layer is {num_layers}"
        )

    def setup(self, stage: str) -> None:
        """Check the settings before anything is loaded.

        Raises:
            UserError: If the trainer's precision is none that weights can have, or the settings do
                not fit the checkpoint or one another.
        """
        precision = self.trainer.precision
        if precision not in _PRECISIONS:
            raise UserError(
                f"trainer.precision: {precision}; expected {', '.join(_PRECISIONS)}: the weights"
                " are loaded in the precision, and there is nothing to mix"
            )
        self.check(self.plan.model)
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        if on_cpu and self.quantize and self.compile_step is True:
            raise UserError(
                "model.compile: a compiled step with quantized weights never ends on a CPU (torch"
                " 2.13); expected false"
            )
        if shards_the_model(self.trainer):
            self.check_sharded()

    def check_sharded(self) -> None:
        """Check the settings of a run whose ranks share one model.

        Raises:
            UserError: If they need the whole model on each rank.
        """
        if self.quantize:
            raise UserError("model.quantize: quantized weights cannot be sharded; expected null")

    def check(self, model: ModelFolder) -> None:
        """Check the settings against the model.

        Raises:
            UserError: If they do not fit.
        """
        self.middle_layer(model)

    def configure_model(self) -> None:
        """Load the model, in the trainer's precision and directly onto its device.

        Raises:
            UserError: If it cannot be found or loaded, or does not fit into the device's memory.
        """
        if self.plan.requests:
            for call in self.before_loading:
                call()
            self.load_model(self.plan)

    def load_model(self, plan: RunPlan) -> None:
        """Load the model, and decide how many sequences a batch has.

        Raises:
            UserError: As :meth:`configure_model`.
        """
        if not hasattr(self, "janus"):
            self._load(plan)
            if shards_the_model(self.trainer):
                self.shard_layers()
        language_model = self.janus.language_model
        if plan.batch_size is None:
            slots = plan.longest_prompt + self.max_new_tokens
            weight = language_model.embed_tokens.weight
            fitting = images_that_fit(language_model.config, slots, weight)
            on_all_ranks = self.trainer.strategy.reduce(
                torch.tensor(fitting, device=weight.device), reduce_op="min"
            )
            share = math.ceil(len(plan.requests) / self.trainer.world_size)
            plan.batch_size = min(int(on_all_ranks), share)

    def load(self, checkpoint: Checkpoint, **how: Any) -> Backbone:
        """Load what the task needs of the model.

        Args:
            checkpoint: The checkpoint.
            how: ``pad_token_id``, ``dtype``, ``device`` and ``quantize``, as
                :func:`lit_dola.janus.loading.load_janus` takes them.

        Raises:
            UserError: If it cannot be loaded.
        """
        raise NotImplementedError

    def _load(self, plan: RunPlan) -> None:
        try:
            self.janus = self.load(
                plan.checkpoint,
                pad_token_id=plan.encoder.pad_token_id,
                dtype=torch.get_default_dtype(),
                device=torch.get_default_device(),
                quantize=self.quantize,
            )
        except RuntimeError as error:
            if not is_oom_error(error):
                raise
            raise RankError(self.out_of_memory("the weights")) from error

    def shard_layers(self) -> None:
        """Leave each rank a part of every layer; a layer is whole only while it runs."""
        from torch.distributed.fsdp import fully_shard

        for layer in self.janus.language_model.layers:
            fully_shard(layer, reshard_after_forward=True)

    def on_predict_start(self) -> None:
        """Prepare the token loop."""
        # By now the precision plugin has cast the whole module.
        self.janus.restore_float32()
        if self.compiles:
            unpack_weights(self.janus)
        else:
            pack_weights(self.janus)
        self.generator = self.make_generator()

    def on_predict_end(self) -> None:
        """Free the token loop and its cache: an evaluation keeps the models of all its variants."""
        del self.generator

    @property
    def max_new_tokens(self) -> int:
        """Tokens that the task draws per sequence, at most."""
        raise NotImplementedError

    def call_on_step(self, tokens: int) -> None:
        """Report progress: tokens drawn per sequence."""
        for call in self.on_step:
            call(tokens)

    def record_settings(self, plan: RunPlan, precision: str) -> dict[str, Any]:
        """Return every setting that shapes a result, with what ``auto`` led to.

        Args:
            plan: The plan of the run.
            precision: That of the trainer, as ``bf16-true``.

        Raises:
            UserError: If the model has no such layer.
        """
        left_out = _NOT_RECORDED | _ROUNDING if precision in EXACT else _NOT_RECORDED
        settings = {
            name: _recorded(value)
            for name, value in self.hparams.items()
            if name not in left_out
            and not name.startswith("_")
            and not (name in _BATCHING and value == "auto")  # see batching()
        }
        return {
            **settings,
            "layer": self.middle_layer(plan.model),
            **({"roles": plan.tokenizer.roles} if plan.tokenizer else {}),
            "checkpoint": plan.model.fingerprint,
            "precision": precision,
        }


def _recorded(value: Any) -> Any:
    """Return a setting as it is read back from JSON."""
    if isinstance(value, str):
        return printable(value)
    return list(value) if isinstance(value, tuple) else value
