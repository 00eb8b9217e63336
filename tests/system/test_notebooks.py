"""The notebooks of docs/notebooks: each runs in a kernel of its own, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
SHOWN = {
    "inside-the-pipeline": ("##ging", "POSITIVE", "Ġhate", "text/html"),
    "your-own-stage": ("unsure", "Did you mean 'margin'?", "passed"),
}
"""Of each notebook: what its outputs hold, besides what its own cells assert."""


@pytest.mark.storm
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(path, as_version=4)
    work = tmp_path / "work"
    work.mkdir()
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(work)}}).execute()
    outputs = str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert [text for text in SHOWN[path.stem] if text not in outputs] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not cell.metadata
        stored = cell.get("outputs") or cell.get("execution_count")
        assert not stored, f"clear the outputs of {path.name} in Jupyter, and save it"
