"""First stage: the VQ tokenizer (van den Oord et al. 2017; its layout is VQGAN's).

Janus' decoder normalizes the codebook's vectors (LlamaGen, Sun et al. 2024, section 3.1), so they
are kept at length 1, and the encoder's latents are normalized before the comparison. transformers'
own ``JanusVQVAE.encode`` normalizes neither but finds the same tokens: among codes of equal length,
the nearest one has the largest inner product.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from lit_dola.janus.vq import encode_pixels
from recipes.shapes.data import Batch


class VQTraining(LightningModule):
    """Trains a ``JanusVQVAE``: reconstruction, codebook and commitment loss.

    Args:
        vq_config: Sizes, as ``vq_config`` of a Janus checkpoint.
        image_size: Height and width of a picture, in pixels.
        learning_rate: Largest learning rate of one cycle.
        embedding_loss_weight: Weight of transformers' codebook and commitment loss, relative to the
            reconstruction loss (mean absolute plus mean squared difference).
        ground_loss_weight: Weight of a loss that pulls the latents of empty ground towards the
            first code. Without it most codes describe ground and its surroundings: invisible
            differences, but noise to the language model that hides the information in the prompt.
        merge_above: Cosine similarity above which two codes are merged after training. They look
            the same, so the choice between them is noise to the language model, too.
        restart_every: Steps after which unused codes are moved onto latents, preferably of places
            that are reconstructed badly, because most of a picture is empty ground.
        output_dir: Folder of the trained tokenizer.
    """

    uses: Tensor

    def __init__(
        self,
        vq_config: dict[str, Any],
        image_size: int = 48,
        learning_rate: float = 2e-3,
        embedding_loss_weight: float = 1.0,
        ground_loss_weight: float = 1.0,
        merge_above: float = 0.985,
        restart_every: int = 50,
        output_dir: str = "outputs/shapes/vq",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = JanusVQVAEConfig(**vq_config)
        config.num_patches = image_size >> (len(config.channel_multiplier) - 1)
        self.vq = JanusVQVAE(config).train()
        codebook = self.vq.quantize.embedding.weight
        with torch.no_grad():
            codebook.copy_(F.normalize(torch.randn_like(codebook), dim=-1))
        self.register_buffer("uses", torch.zeros(config.num_embeddings, dtype=torch.long))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one batch, its latents, and the reconstruction error of each."""
        pixel_values = batch.pixel_values
        latents = self.vq.quant_conv(self.vq.encoder(pixel_values))
        with torch.autocast(self.device.type, enabled=False):
            latents = F.normalize(latents.float(), dim=1)
            quantized, embedding_loss, tokens = self.vq.quantize(latents)
        self.uses += torch.bincount(tokens, minlength=len(self.uses))
        reconstruction = self.vq.decoder(self.vq.post_quant_conv(quantized)).float()
        absolute = F.l1_loss(reconstruction, pixel_values)
        squared = F.mse_loss(reconstruction, pixel_values)
        by_pixel = (reconstruction.detach() - pixel_values).square().mean(dim=1)
        errors = F.adaptive_avg_pool2d(by_pixel, (latents.shape[2], latents.shape[3])).flatten()
        ground = self._ground_loss(pixel_values, latents)
        loss = absolute + squared + self.hparams["embedding_loss_weight"] * embedding_loss
        loss = loss + self.hparams["ground_loss_weight"] * ground
        losses = {"loss": loss, "absolute": absolute, "squared": squared}
        losses |= {"embedding": embedding_loss, "ground": ground}
        self.log_dict(losses, prog_bar=True)
        return {
            "loss": loss,
            "latents": latents.detach().permute(0, 2, 3, 1).flatten(0, 2),
            "errors": errors,
        }

    def _ground_loss(self, pixel_values: Tensor, latents: Tensor) -> Tensor:
        """Return the mean cosine distance from latents of empty, gray ground to the first code."""
        chroma = pixel_values.amax(dim=1) - pixel_values.amin(dim=1)
        strongest = F.adaptive_max_pool2d(chroma, (latents.shape[2], latents.shape[3]))
        ground = latents.permute(0, 2, 3, 1)[strongest < 0.05]
        return 1 - (ground @ self.vq.quantize.embedding.weight[0]).mean()

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, *_: Any) -> None:
        """Normalize the codebook, log its usage, and restart unused codes."""
        codebook: Tensor = self.vq.quantize.embedding.weight
        codebook.copy_(F.normalize(codebook, dim=-1))
        if self.global_step % self.hparams["restart_every"]:
            return
        share = self.uses / self.uses.sum()
        perplexity = torch.special.entr(share).sum().exp()
        unused = (self.uses == 0).nonzero().flatten()
        self.log_dict(
            {"codes_used": 1.0 - len(unused) / len(codebook), "perplexity": perplexity},
            prog_bar=True,
        )
        # Late in the training the codebook is left alone, so that it can converge.
        early = self.global_step < 0.6 * self.trainer.estimated_stepping_batches
        if early and len(unused):
            chosen = torch.multinomial(outputs["errors"], len(unused), replacement=True)
            codebook[unused] = outputs["latents"][chosen]
        self.uses.zero_()

    def configure_optimizers(self) -> Any:
        """Use AdamW with one cycle."""
        optimizer = torch.optim.AdamW(
            self.vq.parameters(), self.hparams["learning_rate"], betas=(0.9, 0.99), weight_decay=0.0
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(
            optimizer, self.hparams["learning_rate"], total_steps=steps, pct_start=0.05
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_end(self) -> None:
        """Merge codes by their usage in the last epoch, and save in transformers' layout."""
        if self.trainer.is_global_zero:
            self.vq.eval()
            last_epoch: Any = self.trainer.train_dataloader
            merge_codes(self.vq, last_epoch, self.hparams["merge_above"])
            self.vq.save_pretrained(Path(self.hparams["output_dir"]))


@torch.no_grad()
def merge_codes(vq: JanusVQVAE, batches: Iterable[Batch], above: float) -> None:
    """Merge similar codes into the one used most, shrinking the codebook in place.

    Args:
        vq: The tokenizer.
        batches: Pictures on which to count usage.
        above: Cosine similarity above which two codes are merged.
    """
    codebook: Tensor = vq.quantize.embedding.weight
    uses = torch.zeros(len(codebook), dtype=torch.long, device=codebook.device)
    for batch in batches:
        tokens = encode_pixels(vq, batch.pixel_values.to(codebook.device))
        uses += torch.bincount(tokens.flatten(), minlength=len(uses))
    kept: list[int] = []
    for code in uses.argsort(descending=True, stable=True).tolist():
        if not kept or (codebook[kept] @ codebook[code]).max() <= above:
            kept.append(code)
    vq.quantize.embedding = nn.Embedding.from_pretrained(codebook[kept].clone(), freeze=False)
    vq.quantize.num_embeddings = vq.config.num_embeddings = len(kept)
