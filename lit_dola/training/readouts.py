"""The LightningModule that trains lenses: affine readouts of middle layers of a frozen Janus."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR

from lit_dola.decoding.step import read_mid
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.lens import LensHead
from lit_dola.janus.tokenizer import Roles
from lit_dola.settings.numbers import Seed
from lit_dola.training.frozen import FrozenJanus, freeze_janus
from lit_dola.training.sources import LensSequence

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
"""Dtype of the frozen model by the trainer's precision; lenses stay in float32."""
READOUTS = ("lens", "norm", "raw")
"""Ways to read a layer: by its lens, through the final norm, through the head alone."""


class LitLens(LightningModule):
    """Trains lenses of a Janus, whose own weights stay as they are.

    The loss is the divergence KL(final layer || middle layer as its lens reads it), in nats, over
    the positions of an image or an answer, summed over the layers (Belrose et al. 2023, section 3).

    Args:
        model_path: As the setting of ``predict``.
        head: Head that reads: image, for ``predict``, or text, for ``answer``.
        layers: Indices in ``hidden_states`` of the layers to read; null: at a quarter, a third and
            a half of the depth.
        learning_rate: Learning rate of Adam after warm-up, from which it falls to 0.
        warmup_steps: Steps in which it rises.
        unconditional: Share of the sequences whose prompt, or pictures, are padded away, as in the
            branch that guidance leads away from.
        roles: As the setting of ``predict``.
        seed: Seed of the order of the sequences, and of which ones are unconditional.
    """

    def __init__(
        self,
        model_path: str = "deepseek-ai/Janus-Pro-7B",
        head: LensHead = "image",
        layers: list[PositiveInt] | None = None,
        learning_rate: PositiveFloat = 2e-3,
        warmup_steps: NonNegativeInt = 20,
        unconditional: ClosedUnitInterval = 1 / 3,
        roles: Roles = "auto",
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.model_path = model_path
        self.head = head
        self.chosen = layers
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.unconditional = unconditional
        self.roles = roles
        self.seed = seed
        self._frozen: list[FrozenJanus] = []  # in a list, so that Lightning does not move it

    @property
    def frozen(self) -> FrozenJanus:
        """The frozen model."""
        return self._frozen[0]

    def prepare(self, checkpoint: Checkpoint, pad_token_id: int, encodes: bool) -> None:
        """Check the layers, and make lenses that read as the final norm does.

        Args:
            checkpoint: The checkpoint.
            pad_token_id: Its id for padding.
            encodes: Load the VQ encoder, for pictures without tokens.
        """
        depth = checkpoint.num_layers
        layers = self.chosen or sorted({max(1, round(depth / part)) for part in (4, 3, 2)})
        for layer in layers:
            checkpoint.check_middle_layer(layer, "model.layers")
        self.checkpoint, self.pad_token_id, self.encodes = checkpoint, pad_token_id, encodes
        self.layers = sorted({*layers})
        size = int(checkpoint.config.text_config.hidden_size)
        self.readouts = nn.ModuleDict({str(layer): nn.Linear(size, size) for layer in self.layers})
        for weight in self.readouts.parameters():
            nn.init.zeros_(weight)

    def configure_model(self) -> None:
        """Load the model that the lenses read."""
        if not self._frozen:
            self._frozen.append(
                freeze_janus(
                    self.head,
                    self.checkpoint,
                    encodes=self.encodes,
                    pad_token_id=self.pad_token_id,
                    dtype=DTYPES[str(self.trainer.precision)],
                    device=self.trainer.strategy.root_device,
                )
            )

    def configure_optimizers(self) -> Any:
        """Return Adam, with a warm-up and a linear decay."""
        optimizer = torch.optim.Adam(self.readouts.parameters(), lr=self.learning_rate)
        steps = max(1, int(self.trainer.estimated_stepping_batches))

        def rate(step: int) -> float:
            rising = min(1.0, (step + 1) / (self.warmup_steps + 1))
            return float(rising * max(0.0, 1 - step / steps))

        return [optimizer], [{"scheduler": LambdaLR(optimizer, rate), "interval": "step"}]

    def training_step(self, batch: list[LensSequence], batch_idx: int) -> Tensor:
        """Return the sum of the divergences of all layers."""
        dropped = (torch.rand(len(batch)) < self.unconditional).tolist()
        final, mids = self._read(batch, dropped)
        losses = [
            divergence(final, self._logits(mid, lens))
            for mid, lens in zip(mids, self.readouts.values())
        ]
        return torch.stack(losses).sum()

    def validation_step(self, batch: list[LensSequence], batch_idx: int) -> None:
        """Log the divergence of each layer as its lens reads it, and as it is read without one."""
        dropped = [place % 3 == 0 for place in range(len(batch))]
        final, mids = self._read(batch, dropped)
        found: dict[str, Tensor] = {}
        for layer, mid, lens in zip(self.layers, mids, self.readouts.values()):
            logits = (
                self._logits(mid, lens), self._logits(mid, norm=True), self._logits(mid)
            )  # fmt: skip
            found |= {
                f"{name}/{layer}": divergence(final, each) for name, each in zip(READOUTS, logits)
            }
        lenses = [found[f"lens/{layer}"] for layer in self.layers]
        found["kl"] = torch.stack(lenses).mean()
        self.log_dict(found, sync_dist=True, batch_size=len(final))

    def _logits(self, mid: Tensor, lens: Any = None, norm: bool = False) -> Tensor:
        """Return the log-probabilities of a middle layer, float32 ``(positions, vocab)``."""
        states = read_mid(self.frozen.language_model, mid, norm, lens)
        return self.frozen.head.logits(states).float().log_softmax(dim=-1)

    @torch.no_grad()
    def _read(
        self, batch: list[LensSequence], dropped: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor]]:
        """Run sequences through the model.

        Returns:
            The final log-probabilities, float32 ``(positions, vocab)``, and the states of each
            layer to read, ``(positions, hidden)``, at the positions that draw a token.
        """
        language_model, head = self.frozen.language_model, self.frozen.head
        rows, drawing = [], []
        for sequence, drop in zip(batch, dropped):
            prompt, tokens = self.frozen.prompt(sequence, drop), self.frozen.tokens(sequence)
            rows.append(torch.cat([prompt, head.embed(tokens[:-1]).to(prompt.dtype)]))
            drawing.append(torch.arange(len(rows[-1])) >= len(prompt) - 1)
        # Padding on the right: no position is shifted, and nothing attends to it.
        inputs = pad_sequence(rows, batch_first=True)
        kept = pad_sequence(drawing, batch_first=True).to(inputs.device)
        with _outputs_of([language_model.layers[layer - 1] for layer in self.layers]) as states:
            final = language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        logits = head.logits(final[kept]).float()
        return logits.log_softmax(dim=-1), [each[kept] for each in states]


def divergence(final: Tensor, mid: Tensor) -> Tensor:
    """Return KL(final || mid) in nats, the mean over positions.

    Args:
        final: Log-probabilities, ``(..., vocab)``.
        mid: Log-probabilities, same shape.
    """
    return (final.exp() * (final - mid)).sum(dim=-1).mean()


@contextmanager
def _outputs_of(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the outputs of layers while they run."""
    found: list[Tensor] = []

    def keep(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
