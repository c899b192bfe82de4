"""Settings that turn logits into a token, with the defaults of image generation."""

from lit_dola.tasks.generate import LitDoLa


def make_scoring(**settings):
    return LitDoLa(**settings).scoring


def sample(scores, noise, **settings):
    return make_scoring(**settings).draw(scores, noise)
