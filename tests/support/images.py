"""The token loop of the image head, as LitDoLa makes it, and a batch to run it on."""

from itertools import zip_longest

import pytest

from lit_dola.decoding.loop import TokenGenerator, cfg_pair
from lit_dola.decoding.sampling import EntropyTemperature
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import load_janus
from tests.support import reference
from tests.support.scoring import make_scoring

PROMPTS = ["a red apple", "two blue birds on a branch above a green river at night", "猫"]
# Five images of three prompts of different length, as a batch in the middle of a run has them.
BATCH = [(0, 3), (1, 0), (1, 1), (2, 0), (0, 2**20)]


class ImageGenerator(TokenGenerator):
    """Takes prompts as token ids and adds the unconditional branch."""

    def __init__(self, janus, *, layer, max_prompt_length=0, compile=False, fill_to=1, **scoring):
        if changing := scoring.get("entropy_temperature"):
            scoring["entropy_temperature"] = EntropyTemperature(*changing)
        super().__init__(
            janus,
            janus.image_head,
            make_scoring(**scoring),
            layer=layer,
            max_new_tokens=janus.num_image_tokens,
            max_prompt_length=max_prompt_length,
            compile=compile,
            fill_to=fill_to,
        )
        self.pad_token_id = janus.pad_token_id

    def __call__(self, prompts, keys, on_step=None, **more):
        branches = [cfg_pair(ids, self.pad_token_id) for ids in prompts]
        return super().__call__(branches, keys, on_step, **more)


def slow(values):
    """Parameters that only run in the slow tier."""
    return [
        pytest.param(value, marks=pytest.mark.slow, id=getattr(value, "__name__", str(value)))
        for value in values
    ]


def load_folder(folder, **settings):
    """Load a Janus from its folder."""
    return load_janus(Checkpoint.open(str(folder)), **settings)


def expected(model, encoder, batch=BATCH, guesses=(), **settings):
    """Return the tokens that the plain reference draws for a batch of images."""
    return [
        reference.generate(
            model,
            encoder.encode(PROMPTS[prompt]),
            encoder.pad_token_id,
            prompt_index=prompt,
            image_index=image,
            guess=guess,
            **settings,
        )
        for (prompt, image), guess in zip_longest(batch, guesses, fillvalue=())
    ]
