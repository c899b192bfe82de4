"""The module of any task: shared settings, loading, and the settings of a record."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.memory import is_oom_error

from lit_dola.data.base import plan_of, shards_the_model
from lit_dola.data.plan import RunPlan
from lit_dola.decoding.prefill import PREFILL_BUCKET
from lit_dola.dola import pick_static_layer_index
from lit_dola.errors import RankError, UserError
from lit_dola.janus.checkpoint import Checkpoint, ModelFolder
from lit_dola.janus.model import Backbone
from lit_dola.janus.quantization import Quantization
from lit_dola.janus.tokenizer import Roles
from lit_dola.messages import printable
from lit_dola.settings.declared import Declared

EXACT = ("32-true", "64-true")
"""Precisions in which a result does not depend on its batch."""
_PRECISIONS = ("32-true", "bf16-true", "16-true", "64-true")


class JanusModule(Declared, LightningModule):
    """Module of a task: loads a model, checks it against the settings, and records them.

    A task declares its own settings, loads its parts of the model in :meth:`load`, and runs a batch
    in ``predict_step``.

    Args:
        model_path: Checkpoint: a local folder, a name on the Hugging Face hub, or one of
            Janus-1.3B, Janus-Pro-1B, Janus-Pro-7B. DeepSeek's layout and transformers' both load.
        dola: Use DoLa; without it every step is exactly Janus' own.
        alpha: Threshold of the head set (DoLa's relative top): tokens with at least ``alpha`` times
            the probability of the most probable token may be drawn; 0: every token may be.
        strength: How much of the middle layer is subtracted: 1 is DoLa, 0 leaves the baseline's
            distribution on the head set; with alpha 0, too, it is the baseline itself.
        layer_ratio: Relative depth of the middle layer (DoLa's premature layer) that the final
            layer is contrasted with.
        layer: Index of the middle layer in ``hidden_states`` (0 is the embedding); overrides
            ``layer_ratio``.
        mid_norm: Apply the model's final norm to the middle layer first, as a logit lens does; DoLa
            itself does not.
        roles: Role names in the prompt's conversation: pro (<|User|>), base (User), or auto: from
            the checkpoint's chat template, else from the checkpoint's name.
        quantize: Store the weights of the language model and the head in fewer bits, using torchao:
            fewer bytes to store and to read per step, and different results. int8wo and float8wo: 8
            bits, a scale per output channel; int4wo: 4 bits, a scale per 32 weights.
    """

    loading: ClassVar[tuple[str, ...]] = ("model_path", "roles", "quantize")
    """Settings of the loaded model."""
    shared: ClassVar[tuple[str, ...]] = loading
    """Settings that all variants of an evaluation share."""
    unrecorded: ClassVar[tuple[str, ...]] = ()
    """Settings that shape no single result."""
    rounding: ClassVar[tuple[str, ...]] = ()
    """Settings that only affect rounding, and hence a result only in low precision."""
    listed_last = (
        "preprocess", "system_prompt", "seed", "roles", "backend", "compile", "quantize", "inspect"
    )  # fmt: skip
    items = "images"
    """Plural noun for the requests of a batch."""
    batch_setting = "images_per_batch"
    """The setting for the number of requests per batch."""
    janus: Backbone
    """The model, once loaded."""
    logprobs = False
    """Measure the log-probability of each token that is drawn; set before prediction starts."""

    def __init__(
        self,
        model_path: str = "deepseek-ai/Janus-Pro-7B",
        dola: bool = True,
        alpha: ClosedUnitInterval = 0.1,
        strength: ClosedUnitInterval = 1.0,
        layer_ratio: ClosedUnitInterval = 0.8,
        layer: PositiveInt | None = None,
        mid_norm: bool = False,
        roles: Roles = "auto",
        quantize: Quantization | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(self.given)
        self.model_path = model_path
        self.dola = dola
        self.layer_ratio = layer_ratio
        self.layer = layer
        self.quantize = quantize
        self.on_step: list[Callable[[int], None]] = []
        """Called after each decoding step with the number of tokens drawn per sequence."""
        self.before_loading: list[Callable[[], None]] = []
        """Called once all settings are checked, before the model is loaded."""
        self.on_decision: list[Callable[[], None]] = []
        """Called when the module has chosen how to run its steps, at first or anew."""

    @property
    def plan(self) -> RunPlan:
        """The plan of the trainer's run."""
        return plan_of(self.trainer)

    @property
    def is_exact(self) -> bool:
        """Return whether a result does not depend on its batch, in the trainer's precision."""
        return self.trainer.precision in EXACT

    @property
    def compiles(self) -> bool:
        """Return whether the decoding step is compiled."""
        return False

    @property
    def max_new_tokens(self) -> int:
        """Upper limit of tokens drawn per sequence; 0 if none is drawn."""
        return 0

    def open_model(self) -> ModelFolder:
        """Open the checkpoint, fetching it if needed, without loading weights."""
        return Checkpoint.open(self.model_path)

    def take_model(self, other: Self) -> None:
        """Share the loaded model of another module of the same checkpoint, if it has one."""
        if hasattr(other, "janus"):
            self.janus = other.janus

    def middle_layer(self, model: ModelFolder) -> int | None:
        """Return the index of the middle layer in ``hidden_states``, or None with DoLa off."""
        return self.dola_layer(model) if self.dola else None

    def dola_layer(self, model: ModelFolder) -> int:
        """Return the index of the middle layer in ``hidden_states``, as if DoLa were on."""
        num_layers: int = model.num_layers
        if num_layers < 2:
            raise UserError(
                f"{self.model_path} has no layer before its final one",
                "a model of several layers, or model.dola false",
                setting="model.model_path",
                mentions=("model.dola",),
            )
        if self.layer is None:
            return pick_static_layer_index(num_layers + 1, True, self.layer_ratio)
        model.check_middle_layer(self.layer, "model.layer")
        return int(self.layer)

    def setup(self, stage: str) -> None:
        """Check the settings before anything is loaded."""
        precision = self.trainer.precision
        if precision not in _PRECISIONS:
            raise UserError(
                precision,
                f"{', '.join(_PRECISIONS)}: weights are loaded in the precision, mixing does not"
                " apply",
                setting="trainer.precision",
            )
        self.check(self.plan.model)
        if shards_the_model(self.trainer):
            self.check_sharded()

    def check(self, model: ModelFolder) -> None:
        """Check the settings against the model."""
        self.middle_layer(model)

    def check_sharded(self) -> None:
        """Check the settings of a run whose ranks share one model."""
        if self.quantize:
            raise UserError("quantized weights cannot be sharded", "null", setting="model.quantize")

    def configure_model(self) -> None:
        """Load the model, in the trainer's precision and directly onto its device."""
        if self.plan.requests:
            for call in self.before_loading:
                call()
            self.load_model(self.plan)

    def load_model(self, plan: RunPlan) -> None:
        """Load the model, unless another module has shared it; arguments and errors as above."""
        if hasattr(self, "janus"):
            return
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
            raise self.out_of_memory("the weights") from error
        if shards_the_model(self.trainer):
            self.shard_layers()

    def load(self, checkpoint: Checkpoint, **options: Any) -> Backbone:
        """Load the parts of the model that the task needs.

        The options are those of :func:`lit_dola.janus.loading.load_janus`.
        """
        raise NotImplementedError

    def shard_layers(self) -> None:
        """Leave each rank a part of every layer; a layer is whole only while it runs."""
        from torch.distributed.fsdp import fully_shard

        for layer in self.janus.language_model.layers:
            fully_shard(layer, reshard_after_forward=True)

    def out_of_memory(self, what: str) -> RankError:
        """Return the error for a lack of memory."""
        batch_setting = f"model.{self.batch_setting}"
        return RankError(
            f"out of memory at {what} of {self.model_path} in {self.trainer.precision}",
            "a device with more free memory, --trainer.precision bf16-true, --model.quantize"
            " int8wo, --trainer.strategy fsdp2 on several GPUs, a smaller"
            f" --{batch_setting} or model",
            mentions=("model.quantize", batch_setting),
        )

    def take_batching(self, plan: RunPlan, precision: str, earlier: Mapping[str, Any]) -> None:
        """In low precision, resolve ``auto`` as the record of an earlier result says."""

    def step_name(self) -> str | None:
        """Return how decoding steps run, for ``run.json``; None if the task has none."""
        return None

    def batching(self) -> dict[str, Any]:
        """Return what else shapes a result in low precision; known once the model is loaded."""
        if self.is_exact:
            return {}
        return {
            self.batch_setting: self.plan.batch_size,
            "compile": self.compiles,
            "prefill_bucket": PREFILL_BUCKET,
        }

    def record_settings(self, plan: RunPlan, precision: str) -> dict[str, Any]:
        """Return every setting that shapes a result, with ``auto`` resolved."""
        left_out = {*self.unrecorded, *(self.rounding if precision in EXACT else ())}
        settings = {
            name: _recorded(value)
            for name, value in self.hparams.items()
            if name not in left_out
            and not (name in self.rounding and value == "auto")  # see batching()
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
