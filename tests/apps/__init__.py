"""Tests of the applications.

``typing`` keeps the first of two unions that differ in their order alone. If Gradio is imported
first, Lightning's ``limit_predict_batches`` is a float before it is an integer, and 1 means all of
them; so Lightning is imported first, as on the command line.
"""

import lightning.pytorch  # noqa: F401
