"""From tokens to pixels."""

import pytest
import torch

from lit_dola.janus.vq import decode_pixels, to_pillow, to_uint8


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
