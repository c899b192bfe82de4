"""Small SigLIPs with random weights, and items to rank."""

import json

import torch
from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipModel,
)

try:
    from transformers.models.siglip2.image_processing_pil_siglip2 import (
        Siglip2ImageProcessorPil,
    )
except ModuleNotFoundError:  # before transformers 5
    from transformers import Siglip2ImageProcessor as Siglip2ImageProcessorPil

from recipes.shapes.siglip import make_siglip_tokenizer, save_siglip
from tests.support.questions import write_pictures

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
LENGTH = 12


def text_config(tokenizer):
    return {
        **SIZES,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def enliven(model):
    """Weights wide enough for similarities that differ."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
        elif "logit_scale" in name:
            weight.data.fill_(3.0)
        elif "logit_bias" in name:
            weight.data.fill_(-2.0)
    return model.eval()


def make_siglip(folder):
    tokenizer = make_siglip_tokenizer(LENGTH)
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    config = SiglipConfig(text_config=text_config(tokenizer), vision_config=vision)
    save_siglip(enliven(SiglipModel(config)), tokenizer, folder)


def make_siglip2(folder):
    """With pictures of any shape, padded to the same number of patches."""
    tokenizer = make_siglip_tokenizer(LENGTH)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = content["model"]["vocab"]  # transformers makes a Gemma's of it, which needs this token
    vocab["<unk>"] = len(vocab)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token, unk_token="<unk>",
    )  # fmt: skip
    vision = {**SIZES, "num_patches": 16, "patch_size": 8}
    config = Siglip2Config(text_config=text_config(tokenizer), vision_config=vision)
    enliven(Siglip2Model(config)).save_pretrained(folder)
    pixels = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    Siglip2Processor(pixels, tokenizer).save_pretrained(folder)
    pixels.save_pretrained(folder)  # where transformers 4 looks


LABELS = ["a red circle", "Two Blue Squares", "a cross at the top", "nothing", "a photo of a cat"]


def write_items(folder, items=None, **more):
    """An item file beside its pictures."""
    write_pictures(folder)
    items = items or [("a.png", LABELS), ("b.png", LABELS[:3]), ("c.jpg", LABELS[::-1])]
    entries = [{"image": image, "labels": labels, **more} for image, labels in items]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, entries)))
