"""Second stage: the language model, with gen_embed, gen_aligner and gen_head.

Sequences are those of generation: the prompt in its conversation, then the image's tokens. The loss
covers the image's tokens only. For classifier-free guidance (Ho and Salimans 2022, section 3.2)
some prompts are replaced by the unconditional branch of generation.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration, get_cosine_schedule_with_warmup
from transformers.models.janus.modeling_janus import JanusVQVAE

from lit_dola.janus.tokenizer import PromptEncoder, unconditional_ids
from recipes.shapes.data import Batch
from recipes.shapes.scene import describe, sample_scene
from recipes.shapes.vq import encode_pictures
from recipes.small_janus import make_config, make_tokenizer, save_janus


def image_logits(
    janus: JanusForConditionalGeneration, input_ids: Tensor, mask: Tensor, tokens: Tensor
) -> Tensor:
    """Return the logits of every image token, given its prompt and the tokens before it.

    Args:
        janus: The model.
        input_ids: Prompts up to begin-of-image, int64 ``(images, length)``.
        mask: False at padding, bool, same shape.
        tokens: Image tokens, int64 ``(images, num_image_tokens)``.

    Returns:
        ``(images, num_image_tokens, codes)``.
    """
    language_model = janus.model.language_model
    drawn = janus.prepare_embeddings_for_image_generation(tokens[:, :-1])
    text = language_model.embed_tokens(input_ids)
    hidden_states = language_model(
        inputs_embeds=torch.cat([text, drawn.to(text.dtype)], dim=1),
        attention_mask=F.pad(mask, (0, drawn.shape[1]), value=True),
        use_cache=False,
    ).last_hidden_state
    return janus.model.generation_head(hidden_states[:, -tokens.shape[1] :])


class JanusTraining(LightningModule):
    """Trains a Janus on the tokens of a VQ tokenizer that is already trained.

    Args:
        vq_path: Folder of the tokenizer, which stays fixed.
        text_config: Sizes of the language model, as ``text_config`` of a Janus checkpoint.
        learning_rate: Largest learning rate: it warms up, then follows a cosine down to 0.
        warmup_steps: Steps until the largest learning rate.
        weight_decay: Weight decay of matrices; vectors have none.
        condition_dropout: Share of the prompts that are replaced by the unconditional branch.
        output_dir: Folder of the checkpoint, in transformers' layout; must not exist yet.
    """

    def __init__(
        self,
        vq_path: str,
        text_config: dict[str, Any],
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
        weight_decay: float = 0.05,
        condition_dropout: float = 0.1,
        output_dir: str = "checkpoints/shapes-janus",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        rng = random.Random(0)
        texts = [describe(sample_scene(rng), rng) for _ in range(5000)]
        self.tokenizer = make_tokenizer(texts)
        with TemporaryDirectory() as folder:  # encode prompts exactly as generation does
            self.tokenizer.save_pretrained(folder)
            self.encoder = PromptEncoder(Path(folder))
        vq = JanusVQVAE.from_pretrained(vq_path)
        vq_config = vq.config.to_diff_dict()
        hidden_size = text_config["hidden_size"]
        vq_config.update(projection_dim=hidden_size, image_token_embed_dim=hidden_size)
        patches = vq.quantize.quant_state_dims[0]
        image_size = patches << (len(vq.config.channel_multiplier) - 1)
        config = make_config(self.tokenizer, text_config, vq_config, image_size)
        self.janus = JanusForConditionalGeneration(config).train()
        self.janus.model.vqmodel.load_state_dict(vq.state_dict())
        self.janus.model.vqmodel.eval()
        # Parts that generation does not use are not trained.
        for part in (self.janus.model.vqmodel, self.janus.model.vision_model, self.janus.lm_head):
            part.requires_grad_(False)
        self.janus.model.aligner.requires_grad_(False)
        with torch.no_grad():  # similar codes start with similar embeddings
            self.janus.model.generation_embeddings.weight.copy_(vq.quantize.embedding.weight)

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Encode prompts, padded on the left, on the host.

        Returns:
            Token ids, int64 ``(prompts, tokens)``, from BOS to begin-of-image, and a bool mask of
            the same shape, False at padding.
        """
        pad = self.encoder.pad_token_id
        rows: list[Sequence[int]] = []
        for prompt in prompts:
            ids = self.encoder.encode(prompt)
            dropped = torch.rand(()) < self.hparams["condition_dropout"]
            rows.append(unconditional_ids(ids, pad) if dropped else ids)
        return pad_left(rows, pad)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross entropy of the image tokens, in nats per token."""
        with torch.autocast(self.device.type, enabled=False):
            tokens = encode_pictures(self.janus.model.vqmodel, batch.pixel_values.float())
        input_ids, mask = (x.to(self.device) for x in self.encode_prompts(batch.prompts))
        logits = image_logits(self.janus, input_ids, mask, tokens)
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Use AdamW with warmup and a cosine."""
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [w for w in trained if w.dim() > 1]},
            {"params": [w for w in trained if w.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups,
            self.hparams["learning_rate"],
            betas=(0.9, 0.95),
            weight_decay=self.hparams["weight_decay"],
        )
        schedule = get_cosine_schedule_with_warmup(
            optimizer, self.hparams["warmup_steps"], int(self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Fail now rather than after an hour if the checkpoint cannot be saved."""
        folder = self.hparams["output_dir"]
        if Path(folder).exists():
            raise SystemExit(f"error: model.output_dir: {folder} exists already")

    def on_train_end(self) -> None:
        """Save the checkpoint."""
        if self.trainer.is_global_zero:
            save_janus(self.janus.eval(), self.tokenizer, Path(self.hparams["output_dir"]))


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Left-pad rows of token ids to one length: int64 ids, and a bool mask, False at padding."""
    length = max(map(len, rows))
    input_ids = [[pad_token_id] * (length - len(ids)) + list(ids) for ids in rows]
    attention_mask = [[False] * (length - len(ids)) + [True] * len(ids) for ids in rows]
    return torch.tensor(input_ids), torch.tensor(attention_mask)
