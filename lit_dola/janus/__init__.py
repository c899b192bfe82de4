"""A Janus checkpoint as a model: its folder, config, weights, tokenizer and VQ decoder."""
