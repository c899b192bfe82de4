"""From tokens to pixels, and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import load_janus
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.janus.vq import decode_pixels, encode_pixels, from_pillow, to_pillow, to_uint8


def test_pixels_are_truncated_and_not_rounded():
    """As in DeepSeek's script: 0.999 of the way to 255 is 254."""
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.9999, 1.0, 1.7])
    assert to_uint8(pixels).tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_cpu_the_decoder_computes_in_float32(dtype, load):
    """Also after Lightning has cast the whole module."""
    janus = load(dtype)
    tokens = torch.randint(1024, (1, 16))
    pixels = janus.decode_image_tokens(tokens)
    assert pixels.dtype == torch.float32
    janus.to(dtype)
    janus.restore_float32()
    assert torch.equal(janus.decode_image_tokens(tokens), pixels)
    assert janus.language_model.embed_tokens.weight.dtype == dtype


def test_images_are_decoded_one_at_a_time(load):
    janus = load(torch.float32)
    tokens = torch.randint(1024, (3, 16))
    seen = []
    decode = janus.decode_image_tokens
    janus.decode_image_tokens = lambda part: seen.append(len(part)) or decode(part)
    decoded = torch.cat(list(decode_pixels(janus, tokens)))
    assert seen == [1, 1, 1]
    assert (decoded.dtype, decoded.shape) == (torch.uint8, (3, 3, 16, 16))
    alone = torch.cat([to_uint8(decode(tokens[i : i + 1])) for i in range(3)])
    assert torch.equal(decoded, alone)
    assert to_pillow(decoded[0]).getpixel((5, 9)) == tuple(decoded[0, :, 9, 5].tolist())


def plain_tokens(vq, pixels):
    """DeepSeek's ``VectorQuantizer``: the nearest code, once both have length 1."""
    latents = vq.quant_conv(vq.encoder(pixels))[0].flatten(1).T
    codes = vq.quantize.embedding.weight
    found = []
    for latent in latents / latents.norm(dim=-1, keepdim=True):
        distances = ((codes / codes.norm(dim=-1, keepdim=True) - latent) ** 2).sum(dim=-1)
        found.append(int(distances.argmin()))
    return found


@pytest.mark.parametrize("lengths", ["alike", "different"])
def test_pixels_are_encoded_as_deepseek_does(lengths, load):
    """Also where the codes have other lengths than 1, which the decoder ignores."""
    vq = load(torch.float64, encodes=True).vq_model
    weight = vq.quantize.embedding.weight
    weight.copy_(torch.nn.functional.normalize(weight))
    if lengths == "different":
        weight.mul_(torch.rand(len(weight), 1) + 0.5)
    pixels = torch.rand(1, 3, 16, 16, dtype=torch.float64) * 2 - 1
    found = encode_pixels(vq, pixels)
    assert (found.dtype, found.shape) == (torch.int64, (1, 16))
    assert found[0].tolist() == plain_tokens(vq, pixels)
    theirs = vq.quantize(vq.quant_conv(vq.encoder(pixels)))[2]
    assert torch.equal(theirs.flatten(), found[0]) is (lengths == "alike")


@pytest.mark.parametrize("size", [(16, 16), (200, 120), (33, 77)])
def test_pictures_are_cut_to_a_square(size):
    """Each value is that of Pillow's own resize of the square in the middle."""
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(values)
    side = min(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    box = (left, top, left + side, top + side)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC, box=box)) / 127.5 - 1
    pixels = from_pillow(image, 16)
    assert pixels.dtype == torch.float32
    assert np.allclose(pixels.permute(1, 2, 0), expected, atol=1e-6)


def test_the_encoder_undoes_the_decoder():
    """The small Janus of the project: most tokens of a picture are those it was decoded from."""
    checkpoint = Checkpoint.open("checkpoints/shapes-janus")
    pad = PromptEncoder(checkpoint.folder).pad_token_id
    vq = load_janus(checkpoint, pad_token_id=pad, encodes=True).vq_model
    with Image.open("recipes/shapes/demo/pictures/000.png") as image:
        tokens = encode_pixels(vq, from_pillow(image.convert("RGB"), checkpoint.image_side)[None])
    again = encode_pixels(vq, vq.decode(tokens))
    assert (again == tokens).float().mean() > 0.9
    assert len(tokens.unique()) > 3
