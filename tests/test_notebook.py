"""The notebook runs from top to bottom, and the committed one is built from the reviewed source."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SOURCE, BUILT = FOLDER / "lora-fine-tuning.py", FOLDER / "lora-fine-tuning.ipynb"


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_committed_notebook_is_built_from_its_source() -> None:
    source, built = jupytext.read(SOURCE), nbformat.read(BUILT, as_version=4)
    assert [cell.source for cell in built.cells] == [cell.source for cell in source.cells]
    assert pictures(built) >= 5
    outputs = [o for cell in built.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("default")  # the kernel's own
def test_it_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.chdir(FOLDER.parent)
    notebook = jupytext.read(SOURCE)
    NotebookClient(notebook, timeout=1500, kernel_name="python3").execute()
    assert pictures(notebook) == pictures(nbformat.read(BUILT, as_version=4))
