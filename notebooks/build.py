"""Execute `lora-fine-tuning.py` in a fresh kernel and write `lora-fine-tuning.ipynb` beside it."""

import json
import re
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
SOURCE = FOLDER / "lora-fine-tuning.py"
TEMPORARY = re.escape(tempfile.gettempdir()) + r"/offbook-\w+"


def scrub(text: str) -> str:
    """Take this machine's folders out of a JSON text."""
    text = re.sub(TEMPORARY, "/tmp/offbook", text)
    return text.replace(f"{FOLDER.parent}/", "").replace(str(Path.home()), "~")


notebook = jupytext.read(SOURCE)
notebook.metadata.pop("jupytext")
for number, cell in enumerate(notebook.cells):
    cell.id = f"cell-{number:02}"  # random ids would change with every build
client = NotebookClient(
    notebook,
    timeout=900,
    kernel_name="python3",
    record_timing=False,
    coalesce_streams=True,
    resources={"metadata": {"path": str(FOLDER.parent)}},
)
client.execute()
notebook.metadata["language_info"] = {"name": "python"}
for cell in notebook.cells:
    if cell.cell_type == "code":
        cell.outputs = [nbformat.from_dict(json.loads(scrub(json.dumps(o)))) for o in cell.outputs]
nbformat.validate(notebook)
nbformat.write(notebook, SOURCE.with_suffix(".ipynb"))
