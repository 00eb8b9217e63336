"""The task ``sparse-embedding``: a text as weights on the words of a vocabulary, by a SPLADE checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit import Registry, option


@dataclass
class SparseConfig:
    """Options of ``postprocessor=sparse``."""

    top_k: int | None = option(None, "how many terms a result lists, heaviest first; null: all above 0", minimum=1)
    pooling: Literal["auto", "max", "sum"] = option(
        "auto", "token weights to one for each term; auto: as the folder's modules.json says, else max"
    )
    activation: Literal["auto", "relu", "log1p_relu"] = option(
        "auto", "log1p of relu, or log1p of that again; auto: as the folder's modules.json says, else relu"
    )


TERM = {"token": "string", "id": "int64", "weight": "float32"}


def register(registry: Registry) -> None:
    """Add ``task=sparse-embedding``, its postprocessor and a preset of it."""
    registry.postprocessor(
        "sparse",
        "pk_sparse.stage:SparseEmbedding",
        SparseConfig,
        gives={"terms": {"list": {"struct": TERM}}},
        summary="masked-lm logits to a weight for each term of the vocabulary",
    )
    registry.task(
        "sparse-embedding",
        "sparse",
        head="masked-lm",
        evaluator="pk_sparse.stage:SparseEvaluator",
        parameters=("postprocessor.top_k",),
        summary="The weights of a text on the terms of a vocabulary, for retrieval, by a SPLADE checkpoint.",
        run='checkpoint.path=./my-splade --text "I love this film."',
        tip="postprocessor.top_k=64 keeps an index small",
    )
    registry.conf("pkg://pk_sparse.conf")
