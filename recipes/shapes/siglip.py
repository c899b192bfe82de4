"""A small SigLIP: a vision tower and a text tower that agree on which caption fits which picture.

The loss is SigLIP's (Zhai et al. 2023, section 3.2): every pair of a batch is a yes/no question.
Whether a caption fits another picture, too, follows from the objects, so those pairs count as yes.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import LightningModule
from tokenizers import normalizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from recipes.shapes.conversation import example_texts
from recipes.shapes.data import Batch
from recipes.shapes.optimizers import muon_and_adamw, take_step
from recipes.shapes.scene import IMAGE_SIZE, Object, Scene
from recipes.shapes.scorer import is_right
from recipes.shapes.words import WORDS, word_loss
from recipes.small_janus import make_tokenizer


def fitting(scenes: Sequence[Scene], pictures: Sequence[Sequence[Object]]) -> Tensor:
    """Return which captions fit which pictures, bool ``(pictures, captions)``."""
    return torch.tensor([[is_right(scene, objects) for scene in scenes] for objects in pictures])


class SiglipTraining(LightningModule):
    """Trains a SigLIP on pictures and captions.

    Args:
        text_config: Sizes of the text tower, as ``text_config`` of a SigLIP checkpoint.
        vision_config: Sizes of the vision tower, as ``vision_config`` of a SigLIP checkpoint.
        learning_rate: As :class:`recipes.shapes.language.JanusTraining`.
        muon_learning_rate: As :class:`recipes.shapes.language.JanusTraining`.
        warmup_steps: As :class:`recipes.shapes.language.JanusTraining`.
        weight_decay: As :class:`recipes.shapes.language.JanusTraining`.
        gradient_clip: As :class:`recipes.shapes.language.JanusTraining`.
        output_dir: Folder of the checkpoint, in transformers' layout; must not exist yet.
    """

    def __init__(
        self,
        text_config: dict[str, Any],
        vision_config: dict[str, Any],
        learning_rate: float = 1e-3,
        muon_learning_rate: float = 3e-3,
        warmup_steps: int = 100,
        weight_decay: float = 0.05,
        gradient_clip: float = 1.0,
        output_dir: str = "checkpoints/shapes-siglip",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False  # two optimizers
        self.tokenizer = make_siglip_tokenizer(text_config["max_position_embeddings"])
        config = SiglipConfig(
            text_config={
                **text_config,
                "vocab_size": len(self.tokenizer),
                "bos_token_id": self.tokenizer.bos_token_id,
                "eos_token_id": self.tokenizer.eos_token_id,
                "pad_token_id": self.tokenizer.pad_token_id,
            },
            vision_config={**vision_config, "image_size": IMAGE_SIZE},
        )
        self.siglip = SiglipModel(config).train()
        with torch.no_grad():  # as SigLIP starts
            self.siglip.logit_scale.fill_(math.log(10))
            self.siglip.logit_bias.fill_(-10)
        self.word_classifier = nn.Linear(config.vision_config.hidden_size, len(WORDS))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses, and take a step."""
        losses = self.losses(batch)
        self.log_dict(losses, prog_bar=True)
        take_step(self, torch.stack([*losses.values()]).sum(), self.hparams["gradient_clip"])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return SigLIP's loss in nats per picture, and that of the words at each patch."""
        texts = self.tokenizer(batch.prompts, padding="max_length", return_tensors="pt")
        output = self.siglip(
            input_ids=texts["input_ids"].to(self.device), pixel_values=batch.pixel_values
        )
        fit = fitting(batch.scenes, batch.objects).to(self.device)
        signs = fit.float() * 2 - 1
        pairs = F.logsigmoid(signs * output.logits_per_image.float())
        states = output.vision_model_output.last_hidden_state
        return {
            "loss": -pairs.sum(dim=1).mean(),
            "words": word_loss(self.word_classifier(states), batch.objects),
        }

    def configure_optimizers(self) -> Any:
        """Use Muon for the matrices inside layers, and AdamW for all else."""
        layers = (
            *self.siglip.text_model.encoder.parameters(),
            *self.siglip.vision_model.encoder.parameters(),
        )
        names = ("muon_learning_rate", "learning_rate", "weight_decay", "warmup_steps")
        return muon_and_adamw(self, layers, **{name: self.hparams[name] for name in names})

    def on_train_start(self) -> None:
        """Fail now rather than at the end if the checkpoint cannot be saved."""
        folder = self.hparams["output_dir"]
        if Path(folder).exists():
            raise SystemExit(f"error: model.output_dir: {folder} exists already")

    def on_train_end(self) -> None:
        """Save the checkpoint."""
        if self.trainer.is_global_zero:
            save_siglip(self.siglip.eval(), self.tokenizer, Path(self.hparams["output_dir"]))


def make_siglip_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that ends texts as SigLIP's does, and pads them to a length.

    Args:
        length: Tokens of the text tower.
    """
    texts = [text.lower() for text in example_texts()]
    janus = make_tokenizer(texts, vocab_size=640)
    backend = janus.backend_tokenizer
    backend.normalizer = normalizers.Lowercase()
    eos = janus.eos_token
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, janus.eos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=length,
        model_input_names=["input_ids"],
        bos_token=janus.bos_token,
        eos_token=eos,
        pad_token=janus.pad_token,
    )


def _name_tokenizer_class(path: Path) -> None:
    """Name the tokenizer's class as every version of transformers knows it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_siglip(model: SiglipModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a checkpoint in transformers' layout, in bfloat16, completely or not at all.

    Args:
        model: The model; its weights are cast in place.
        tokenizer: As :func:`make_siglip_tokenizer` returns it.
        folder: Folder of the checkpoint; must not exist, or be empty.
    """
    size = model.config.vision_config.image_size
    pixels = SiglipImageProcessor(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        unfinished = Path(temporary) / folder.name
        model.to(torch.bfloat16).save_pretrained(unfinished)
        SiglipProcessor(pixels, tokenizer).save_pretrained(unfinished)
        pixels.save_pretrained(unfinished)  # where transformers 4 looks
        _name_tokenizer_class(unfinished / "tokenizer_config.json")
        unfinished.replace(folder)
