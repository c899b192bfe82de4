"""The notebook runs, and shows what it has stored."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import ROOT

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")


def pictures(cell):
    """The images among the outputs of a cell."""
    found = [output.get("data", {}).get("image/png") for output in cell.get("outputs", [])]
    return [Image.open(BytesIO(base64.b64decode(image))).convert("RGB") for image in found if image]


def texts(cell):
    return [
        re.sub("0x[0-9a-f]+", "", output.get("text") or output["data"]["text/plain"])
        for output in cell.get("outputs", [])
    ]


@pytest.mark.slow
def test_the_notebook_shows_what_it_has_stored():
    from docs.make_notebook import NOTEBOOK, executed

    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    now = executed()
    shown = 0
    for before, after in zip(stored.cells, now.cells, strict=True):
        assert texts(before) == texts(after)
        for one, other in zip(pictures(before), pictures(after), strict=True):
            assert one.size == other.size
            # Another CPU may round otherwise, and another matplotlib may draw fonts otherwise.
            difference = np.abs(np.asarray(one, float) - np.asarray(other, float))
            assert difference.mean() < 2
            shown += 1
    assert shown == 6


@pytest.mark.slow
def test_a_notebook_has_bars():
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    code = """
from lit_dola import JanusPipeline
pipeline = JanusPipeline.from_pretrained("checkpoints/shapes-janus")
pipeline("a red circle", parallel_size=1, progress={})
None
"""
    cells = [new_code_cell(code.format(progress)) for progress in (True, False)]
    notebook = new_notebook(cells=cells)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": ROOT}})
    loud, quiet = client.execute().cells
    bars = [output.data["text/plain"] for output in loud.outputs if "data" in output]
    assert any(bar.startswith("Images:") for bar in bars), loud.outputs
    assert quiet.outputs == []
