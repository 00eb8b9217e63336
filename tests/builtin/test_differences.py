"""Every deliberate difference from transformers.pipeline() is proved by a test, which says what transformers does.

The proofs stand in ``test_differences_TASK.py``: they work the right answer out from the model's raw output, or show
the error that transformers raises. The pages of the docs list the differences for users.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
PROOFS = {
    "feature-extraction": 7,
    "fill-mask": 7,
    "question-answering": 10,
    "text-classification": 11,
    "text-generation": 9,
    "token-classification": 11,
    "zero-shot-classification": 7,
}
"""By task: how many differences are proved."""


def test_every_file_of_proofs_is_listed() -> None:
    files = {path.stem.removeprefix("test_differences_") for path in HERE.rglob("test_differences_*.py")}
    assert files == {task.replace("-", "_") for task in PROOFS}


@pytest.mark.parametrize("task", PROOFS)
def test_every_difference_has_its_proof_and_its_place_in_the_docs(task: str) -> None:
    source = next(HERE.rglob(f"test_differences_{task.replace('-', '_')}.py")).read_text(encoding="utf-8")
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    proofs = {node.name: ast.get_docstring(node) for node in found if node.name.startswith("test_")}
    assert len(proofs) == PROOFS[task]
    assert [name for name, text in proofs.items() if not text] == [], (
        "say what transformers does, and why ours is right"
    )
    page = (HERE.parent / "docs" / "tasks" / f"{task}.md").read_text(encoding="utf-8")
    assert "## Where results differ" in page
