"""Evaluation: the same entries under several variants, scored."""
