"""What the tests of panels share: pipelines that note what their stages gave, and the panels made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import pipeline_of

from pipeline_kit import Pipeline
from pipeline_kit.contract.stages import Panel, Seen
from pipeline_kit.contract.types import Encoding, Example, Result, RowOutput, Side
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy, split_rows

TOLERANCE = 1e-6
WIDTH = 78
ROWS = 50
WINDOWS: Mapping[str, Any] = {"overflow": "window", "max_length": 24, "overlap": 6}
LONG = "It was a terrible film, and the plot was so dull that I never want to see it again! 🙂 " * 3
TEXTS = (
    "I love this movie.",
    "a",
    "Ünïcödé 漢字 😀 e\u0301 עברית \t zzz",
    "What a long day, so we are waiting for a Hugging Face course.",
    "",
)


@dataclass
class Told:
    """What one example gave: its encodings, what model and `reduce` gave for each, the result and the panels.

    :param padded: whether one of the encodings had padding beside it.
    """

    encodings: list[Encoding]
    raw: list[RowOutput]
    outputs: list[RowOutput]
    result: Result
    panels: Sequence[Any]
    padded: bool

    def panel(self, begin: str) -> Any:
        """Return the one panel whose title begins so; a test knows what its cells hold, so they are Any."""
        found = [panel for panel in self.panels if panel.title.startswith(begin)]
        assert len(found) == 1, (begin, [panel.title for panel in self.panels])
        return found[0]


@dataclass
class _Notes:
    """An observer: which encodings went into which batch, and what came out of it."""

    raw: dict[int, RowOutput] = field(default_factory=dict)
    outputs: dict[int, RowOutput] = field(default_factory=dict)
    done: list[tuple[Any, Any, Any]] = field(default_factory=list)
    padded: dict[int, bool] = field(default_factory=dict)
    _encodings: Sequence[Encoding] = ()
    _batch: Any = None

    def __call__(self, stage: str, given: Any, gave: Any) -> None:
        if stage == "padding":
            self._encodings, self._batch = given, gave
            width = gave.input_ids.shape[1]
            self.padded.update({id(encoding): len(encoding.input_ids) < width for encoding in given})
        elif stage in ("model", "reduce"):
            kept = self.raw if stage == "model" else self.outputs
            rows = split_rows(gave, self._batch)
            kept.update({id(encoding): row for encoding, row in zip(self._encodings, rows, strict=True)})
        elif stage == "postprocessor":
            self.done += zip(*given[:2], gave, strict=True)


def assemble(
    folder: Path,
    task: str,
    postprocessor: Mapping[str, Any],
    tokenizer: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
) -> Pipeline:
    """Build a pipeline whose every operation is the raw network's own."""
    return pipeline_of(task, folder, tokenizer=tokenizer, model={"linear": "eager", **(model or {})}, **postprocessor)


def padded(pipe: Pipeline, side: Side) -> Pipeline:
    """Return the pipeline with padding on `side`, and batches that have some."""
    policy = PaddingPolicy("multiple_of", side, pipe.padding.pad_token_id, pipe.tokenizer.max_length, multiple_of=7)
    return replace(pipe, padding=policy, batching=BatchingPolicy(False, None, 3, 100))


def ask(pipe: Pipeline, examples: Sequence[Example]) -> list[Told]:
    """Run `examples` in one go and let the postprocessor tell of each."""
    notes = _Notes()
    results = replace(pipe, observer=notes)(list(examples))
    assert pipe.batching.sort or len(examples) == 1 or any(notes.padded.values()), "nothing was padded"
    told = []
    by_example = {id(example): (encodings, gave) for (example, encodings, gave) in notes.done}
    for example, result in zip(examples, results, strict=True):
        encodings, gave = by_example[id(example)]
        assert gave is result
        raw, outputs = ([kept[id(encoding)] for encoding in encodings] for kept in (notes.raw, notes.outputs))
        panels = pipe.postprocessor.panels(Seen(example, encodings, raw, outputs, result))
        check_readable(panels)
        told.append(Told([*encodings], raw, outputs, result, panels, any(notes.padded[id(e)] for e in encodings)))
    return told


def check_readable(panels: Sequence[Panel]) -> None:
    """Check what every panel owes its reader: bounded, readable, JSON values only."""
    assert panels
    for panel in panels:
        assert panel.title
        assert len(panel.rows) <= ROWS, panel.title
        assert all(len(line) <= WIDTH for line in panel.formula.split("\n")), panel.formula
        assert panel.bar is None or panel.bar in panel.columns
        for row in panel.rows:
            assert len(row) == len(panel.columns), panel.title
            assert all(type(value) in (str, int, float, bool, type(None)) for value in row), (panel.title, row)
            assert all(np.isfinite(value) for value in row if type(value) is float), (panel.title, row)


def column(panel: Panel, name: str) -> list[Any]:
    """Return the cells of one column."""
    return [row[list(panel.columns).index(name)] for row in panel.rows]


def last_number(panel: Panel, line: int = -1) -> float:
    """Return the number that a line of the formula comes to."""
    return float(panel.formula.split("\n")[line].rpartition("= ")[2])


def network(folder: Path, name: str) -> Any:
    """Load transformers' own network."""
    return getattr(transformers, name).from_pretrained(folder).eval()


@torch.no_grad()
def reference(model: Any, told: Told) -> list[dict[str, torch.Tensor]]:
    """Return what the network gave for each encoding, checked against transformers' own without padding.

    The last digits of a float32 row depend on its batch, so those of the pipeline's run are given: what is done by
    hand from here on must agree with a panel far better than two runs of a network agree.
    """
    found = []
    for encoding, raw in zip(told.encodings, told.raw, strict=True):
        inputs = {"input_ids": torch.tensor([list(encoding.input_ids)])}
        if encoding.token_type_ids is not None:
            inputs["token_type_ids"] = torch.tensor([list(encoding.token_type_ids)])
        if "MultipleChoice" in type(model).__name__:
            inputs = {name: value[:, None] for name, value in inputs.items()}
        rows = {name: torch.from_numpy(np.array(value)) for name, value in raw.items()}
        for name, value in model(**inputs).items():
            if name in rows:
                torch.testing.assert_close(rows[name], value[0].reshape(rows[name].shape), atol=1e-5, rtol=1e-5)
        assert set(rows) & {"logits", "last_hidden_state", "start_logits"}
        found.append(rows)
    return found


def close(found: Sequence[float], expected: Any) -> None:
    """Check numbers of a panel against those that torch gave."""
    np.testing.assert_allclose(
        np.array(found), np.array(torch.as_tensor(expected).tolist()), atol=TOLERANCE, rtol=TOLERANCE
    )


def token_weights(encodings: Sequence[Encoding]) -> torch.Tensor:
    """Weight windows so that each token of the text counts once, ``[W]``; 1 for a text that is whole."""
    if len(encodings) == 1:
        return torch.ones(1, dtype=torch.float64)
    spans = [range(*encoding.token_span) for encoding in encodings if encoding.token_span is not None]
    assert len(spans) == len(encodings)
    holders = [sum(token in span for span in spans) for token in range(spans[-1].stop)]
    return torch.tensor([sum(1 / holders[token] for token in span) for span in spans], dtype=torch.float64)


def shown(value: float) -> Any:
    """Return what a number of a formula, of six digits, is to be equal to."""
    return pytest.approx(value, rel=1e-5, abs=2e-6)
