"""The graph of a checkpoint: from the cache, or exported into it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_kit.checkpoint import fingerprint
from pipeline_kit.exported.cache import cached
from pipeline_kit.exported.facts import Facts
from pipeline_kit.exported.format import GraphFormat
from pipeline_kit.stages import StageContext

__all__ = ["find_graph", "graph_key"]

_log = logging.getLogger(__name__)


def graph_key(context: StageContext, head: str, recipe: int, versions: Mapping[str, str]) -> dict[str, Any]:
    """Give all that an exported network depends on, as JSON values.

    :param recipe: counted up by a plugin when what it makes comes out otherwise.
    """
    return {
        "recipe": recipe,
        "checkpoint": fingerprint(context.checkpoint),
        "head": head,
        "token_type_ids": _gives_types(context),
        "versions": dict(versions),
    }


def find_graph(root: Path, context: StageContext, key: Mapping[str, Any], kind: GraphFormat) -> tuple[Path, Facts]:
    """Find the float32 graph for `key` below `root`, or export it.

    :param key: what :func:`graph_key` gave.
    :returns: the folder that `kind` loads, every file in it as it was written, and what is known of the graph.
    :raises CheckpointError: if the checkpoint lacks the head, or cannot be exported.
    :raises ConfigError: if the cache cannot be written.
    """

    def export_it(folder: Path) -> dict[str, Any]:
        from pipeline_kit.exported import export

        _log.warning("exporting %s to %s for the head %s, once", context.checkpoint.name, kind.name, key["head"])
        return export.export(context, key["head"], key["token_type_ids"], folder, kind).to_json()

    folder, facts = cached(root, {**key, "precision": "float32"}, export_it)
    return folder, Facts.from_json(facts)


def _gives_types(context: StageContext) -> bool:
    """Tell whether the tokenizer gives ``token_type_ids``; GPT-2 and XLNet tell none from zeros."""
    if context.tokenizer is None:
        return False
    return context.tokenizer.encode(["a"])[0].token_type_ids is not None
