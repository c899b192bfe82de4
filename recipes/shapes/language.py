"""Second stage: everything but the VQ tokenizer, drawing and seeing at once.

Sequences are those of generation: the prompt in its conversation, then the image's tokens. The loss
covers the image's tokens only. For classifier-free guidance (Ho and Salimans 2022, section 3.2)
some prompts are replaced by the unconditional branch of generation. Conversations are those of
``answer``, see :mod:`recipes.shapes.conversation`.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import JanusConfig, JanusForConditionalGeneration
from transformers.models.janus.modeling_janus import JanusVQVAE

from lit_dola.janus.question import QuestionEncoder
from lit_dola.janus.tokenizer import unconditional_ids
from lit_dola.janus.vq import encode_pixels
from recipes.shapes.conversation import answer_loss, converse, example_texts
from recipes.shapes.data import Batch
from recipes.shapes.optimizers import muon_and_adamw, take_step
from recipes.shapes.words import WORDS, word_loss
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
    """Trains a Janus to draw the tokens of a trained VQ tokenizer, and to answer questions.

    Every picture is drawn; some of them are also talked about. The vision tower, the aligner and
    ``lm_head`` learn from the answers, and the vision tower also from naming what each of its
    patches shows.

    Args:
        vq_path: Folder of the tokenizer, which stays fixed.
        text_config: Sizes of the language model, as ``text_config`` of a Janus checkpoint.
        vision_config: Sizes of the vision tower, as ``vision_config`` of a Janus checkpoint.
        learning_rate: Largest learning rate: it warms up, then follows a cosine down to 0.
        muon_learning_rate: That of the matrices inside layers, which Muon updates.
        warmup_steps: Steps until the largest learning rate.
        weight_decay: Weight decay of matrices; vectors have none.
        gradient_clip: Largest norm of all gradients.
        condition_dropout: Share of the prompts, and of the pictures in conversations, that are
            replaced by the unconditional branch.
        conversations: Pictures per step that are talked about, over all processes.
        turns: Questions per conversation.
        vision_epochs: Epochs at the start in which only the vision tower learns, to name what its
            patches show. A language model that meets a tower that sees nothing yet learns to
            ignore it, and does not recover.
        output_dir: Folder of the checkpoint, in transformers' layout; must not exist yet.
    """

    def __init__(
        self,
        vq_path: str,
        text_config: dict[str, Any],
        vision_config: dict[str, Any],
        learning_rate: float = 1e-3,
        muon_learning_rate: float = 3e-3,
        warmup_steps: int = 200,
        weight_decay: float = 0.05,
        gradient_clip: float = 1.0,
        condition_dropout: float = 0.1,
        conversations: int = 12,
        turns: int = 12,
        vision_epochs: int = 5,
        output_dir: str = "checkpoints/shapes-janus",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False  # two optimizers
        self.tokenizer = make_tokenizer(example_texts(), vocab_size=640)
        vq = JanusVQVAE.from_pretrained(vq_path)
        config = self._make_config(vq, text_config, vision_config)
        with TemporaryDirectory() as folder:  # encode prompts exactly as generation does
            self.tokenizer.save_pretrained(folder)
            self.encoder = QuestionEncoder(Path(folder), config.vision_config.num_image_tokens)
        self.janus = JanusForConditionalGeneration(config).train()
        self.janus.model.vqmodel.load_state_dict(vq.state_dict())
        self.janus.model.vqmodel.eval().requires_grad_(False)
        with torch.no_grad():  # similar codes start with similar embeddings
            self.janus.model.generation_embeddings.weight.copy_(vq.quantize.embedding.weight)
        self.word_bias = nn.Parameter(torch.full((len(WORDS),), -4.0))
        self.word_ids = [one for word in WORDS for one in self.encoder.encode_text(f" {word}")]

    def _make_config(
        self, vq: JanusVQVAE, text_config: dict[str, Any], vision_config: dict[str, Any]
    ) -> JanusConfig:
        vq_config = vq.config.to_diff_dict()
        hidden_size = text_config["hidden_size"]
        vq_config.update(projection_dim=hidden_size, image_token_embed_dim=hidden_size)
        patches = vq.quantize.quant_state_dims[0]
        image_size = patches << (len(vq.config.channel_multiplier) - 1)
        return make_config(self.tokenizer, text_config, vq_config, image_size, vision_config)

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

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses, each a cross entropy in nats per token or patch, and take a step."""
        if self.current_epoch < self.hparams["vision_epochs"]:
            pictures = self.see(batch.pixel_values)
            losses = {"words": word_loss(self.word_logits(pictures), batch.objects)}
        else:
            losses = {"loss": self.drawing_loss(batch), **self.seeing_losses(batch)}
        self.log_dict(losses, prog_bar=True)
        take_step(self, torch.stack([*losses.values()]).sum(), self.hparams["gradient_clip"])

    def drawing_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the image tokens."""
        with torch.autocast(self.device.type, enabled=False):
            tokens = encode_pixels(self.janus.model.vqmodel, batch.pixel_values.float())
        input_ids, mask = (x.to(self.device) for x in self.encode_prompts(batch.prompts))
        logits = image_logits(self.janus, input_ids, mask, tokens)
        return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())

    def see(self, pixel_values: Tensor) -> Tensor:
        """Return the pictures' embeddings, ``(pictures, patches, hidden)``."""
        features = self.janus.model.vision_model(pixel_values).last_hidden_state
        embeddings: Tensor = self.janus.model.aligner(features)
        return embeddings

    def word_logits(self, pictures: Tensor) -> Tensor:
        """Return how much each patch resembles each of the :data:`WORDS`.

        A patch is compared with the words' own embeddings, so that a picture is a text to the
        language model.
        """
        words = self.janus.model.language_model.embed_tokens.weight[self.word_ids]
        return F.linear(F.rms_norm(pictures, pictures.shape[-1:]), words, self.word_bias)

    def seeing_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of the answers, and of the words at each patch."""
        count = self.hparams["conversations"] // self.trainer.world_size
        rng = random.Random(int(torch.randint(2**31, ())))
        conversations = [
            converse(self.encoder, objects, prompt, self.hparams["turns"], rng)
            for objects, prompt in zip(batch.objects[:count], batch.prompts[:count])
        ]
        pictures = self.see(batch.pixel_values[:count])
        seen = torch.rand(len(pictures), device=self.device) >= self.hparams["condition_dropout"]
        pad = self.encoder.pad_token_id
        return {
            "answers": answer_loss(self.janus, pictures, conversations, seen, pad),
            "words": word_loss(self.word_logits(pictures), batch.objects[:count]),
        }

    def configure_optimizers(self) -> Any:
        """Use Muon for the matrices inside layers, and AdamW for all else."""
        layers = (
            *self.janus.model.language_model.layers.parameters(),
            *self.janus.model.vision_model.encoder.parameters(),
        )
        names = ("muon_learning_rate", "learning_rate", "weight_decay", "warmup_steps")
        return muon_and_adamw(self, layers, **{name: self.hparams[name] for name in names})

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
