"""Another runtime driven by hand: the same batches as ours, padded with numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from pipeline_kit.bench.sides import BenchSide, PipelineSide, TextBatch
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import StageError
from pipeline_kit.runtime.batching import plan_batches

from .graphs import Graph

__all__ = ["ByHand"]


@final
class ByHand(BenchSide):
    """A loop as somebody would write it who knows what is fast: tokenize all, sort, cut by tokens, pad, run, softmax.

    Its plan is that of `ours`, so that the two differ in nothing but the code that runs.
    """

    def __init__(self, name: str, graph: Graph, checkpoint: Path, ours: PipelineSide) -> None:
        """Load the fast tokenizer of `checkpoint`, the classifier that `graph` was made from."""
        import transformers

        self.name, self.device = name, ours.device
        self._graph, self._ours = graph, ours.pipeline
        with quiet():
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
        labels = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("id2label")
        self._labels = {int(place): label for place, label in (labels or {0: "LABEL_0", 1: "LABEL_1"}).items()}

    def warm_up(self, examples: Sequence[Example]) -> TextBatch:
        """Run, and count what went into the graph."""
        work = TextBatch([])
        work.results = self._pass(examples, work)
        return work

    def run(self, examples: Sequence[Example]) -> object:
        """Run."""
        return self._pass(examples, None)

    def run_one(self, example: Example) -> object:
        """Run one text as a batch of its own."""
        return self._pass([example], None)

    @property
    def description(self) -> Mapping[str, Any]:
        """Where its batches come from."""
        return {"runtime": self.name, "batching": dict(self._ours.description["batching"])}

    def _pass(self, examples: Sequence[Example], work: TextBatch | None) -> list[dict[str, Any]]:
        try:
            return self._classify([str(example) for example in examples], work)
        except Exception as error:
            raise StageError(f"{self.name} failed on these texts: {type(error).__name__}: {error}") from error

    def _classify(self, texts: list[str], work: TextBatch | None) -> list[dict[str, Any]]:
        ids = self._tokenizer(texts, truncation=True, return_attention_mask=False)["input_ids"]
        results: list[dict[str, Any]] = [{} for _ in texts]
        for rows in plan_batches([len(row) for row in ids], self._ours.batching, self._ours.padding):
            lengths = np.array([len(ids[row]) for row in rows])
            mask = np.arange(lengths.max()) < lengths[:, None]
            table = np.full(mask.shape, self._tokenizer.pad_token_id, dtype=np.int64)
            table[mask] = np.concatenate([ids[row] for row in rows])
            logits = self._graph({"input_ids": table, "attention_mask": mask.astype(np.int64)})
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            for row, best, share in zip(rows, shares.argmax(1).tolist(), shares.max(1).tolist(), strict=True):
                results[row] = {"label": self._labels[best], "score": share}
            if work is not None:
                work.count(lengths, table.size)
        return results
