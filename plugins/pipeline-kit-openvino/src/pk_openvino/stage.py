"""The model ``openvino``: the checkpoint's network as a graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from pipeline_kit.builtin.models.hf.heads import check_head_name
from pipeline_kit.contract.stages import Model, StageContext
from pipeline_kit.contract.types import ModelOutput, Side, TokenBatch
from pipeline_kit.errors import ConfigError, Fault
from pipeline_kit.graphs.cache import cached, default_folder, required_versions
from pipeline_kit.graphs.format import GraphInfo
from pipeline_kit.graphs.graphs import find_graph, graph_key, run_graph

from . import OpenVinoConfig, Precision
from .compiled import Compiled, check_device
from .format import MODEL, OpenVino
from .probe import has_bfloat16, has_int8

__all__ = ["TOLERANCES", "OpenVinoModel"]

TOLERANCES = {"float32": 1e-5, "bfloat16": 0.25, "int8": 0.75}
"""By precision; all but the first are for outputs of order 10 of random networks, harder than trained ones."""

RECIPE = 1
"""Counted up when a graph made by this package comes out otherwise."""

_log = logging.getLogger(__name__)
_PACKAGES = ("openvino", "torch", "transformers")


@final
class OpenVinoModel(Model):
    """Returns what ``model=hf`` returns, computed by OpenVINO on the CPU.

    The graph is exported from the checkpoint's safetensors and kept under a key of all that it depends on. No graph
    of the checkpoint's own is ever opened. One compiled graph takes batches of every shape.
    """

    def __init__(self, config: OpenVinoConfig, context: StageContext) -> None:
        """Find the graph in the cache, or export it.

        :raises CheckpointError: if the checkpoint lacks the head, or cannot be exported.
        :raises ConfigError: if there is no such head, a package or an instruction is missing, or the cache cannot be
            written.
        :raises DeviceError: if the device is not a CPU.
        """
        head = config.head or context.head
        check_head_name(head)
        found = required_versions("model=openvino", _PACKAGES)
        check_device(context.device)
        _check_processor(config.precision)
        root = default_folder("openvino") if config.cache_dir is None else Path(config.cache_dir).expanduser()
        key = graph_key(context, head, RECIPE, found)
        group = 0
        if config.precision == "int8":
            self._folder, self._facts, group = _int8(root, context, key)
        else:  # bfloat16 rounds the weights of the same graph when it is loaded
            self._folder, self._facts = find_graph(root, context, key, OpenVino())
        half = config.precision == "bfloat16"
        self._graph = Compiled(self._folder / MODEL, context.device, bfloat16=half, group=group)
        self._precision = config.precision

    @property
    def details(self) -> Mapping[str, Any]:
        """The precision and the folder of the graph."""
        return {"precision": self._precision, "graph": str(self._folder)}

    @property
    def supported_sides(self) -> frozenset[Side]:
        """The padding sides that leave the float32 graph's answers as they are, tried out after the export."""
        return self._facts.sides

    @property
    def tolerance(self) -> float:
        """1e-5 in float32; for outputs of order 10, 0.25 in bfloat16 and 0.75 in int8."""
        return TOLERANCES[self._precision]

    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Run the graph; rows that it may not see together are run apart.

        :returns: the tensors of the head, float32.
        """
        return run_graph(self._graph, self._facts, batch)


def _check_processor(precision: Precision) -> None:
    """Refuse bfloat16 where it would be emulated; tell where int8 brings nothing but a smaller file.

    :raises ConfigError: for bfloat16.
    """
    if precision == "bfloat16" and not has_bfloat16():
        problem = "OpenVINO has no bfloat16 on this processor, which lacks the instructions."
        raise ConfigError([Fault("model.precision", problem, ("float32", "int8"), hint="use one of these")])
    if precision == "int8" and not has_int8():
        _log.warning("OpenVINO has no products in int8 on this processor; model.precision=float32 is as fast or faster")


def _int8(root: Path, context: StageContext, key: Mapping[str, Any]) -> tuple[Path, GraphInfo, int]:
    """Find the int8 graph below `root`, or make it of the one in float32, which is kept too.

    :returns: with it how many inputs of its products share a scale.
    """

    def compress_it(folder: Path) -> dict[str, Any]:
        from .compress import compress

        whole, facts = find_graph(root, context, key, OpenVino())
        group = compress(context.checkpoint, whole, folder)
        Compiled(folder / MODEL, context.device, group=group)  # a graph that does not load is not kept
        return {**facts.to_json(), "group": group}

    folder, facts = cached(root, {**key, "precision": "int8"}, compress_it)
    return folder, GraphInfo.from_json(facts), facts["group"]
