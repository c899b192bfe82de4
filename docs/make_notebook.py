"""Runs the notebook and saves it with what came out: ``python -m docs.make_notebook``."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/notebook.ipynb"


def executed() -> nbformat.NotebookNode:
    """Return the notebook with the outputs that its cells have now.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # The kernel that it names may be another environment's.
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    )
    return client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    notebook = executed()
    for cell in notebook.cells:
        cell.metadata.clear()  # times of this run
    nbformat.write(notebook, NOTEBOOK)
