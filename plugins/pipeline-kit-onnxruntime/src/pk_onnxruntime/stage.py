"""The model ``onnxruntime``: the checkpoint's network as a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from pipeline_kit.builtin.models.hf.heads import check_head_name
from pipeline_kit.contract.stages import Model, StageContext
from pipeline_kit.contract.types import Device, ModelOutput, Side, TokenBatch
from pipeline_kit.graphs.cache import cached, default_folder, required_versions
from pipeline_kit.graphs.format import GraphInfo
from pipeline_kit.graphs.graphs import find_graph, graph_key, run_graph

from . import OnnxRuntimeConfig, Precision
from .format import MODEL, Onnx
from .quantize import needs_reduced_range, quantize
from .session import Session, check_device

__all__ = ["TOLERANCES", "OnnxRuntimeModel"]

TOLERANCES = {"float32": 1e-5, "int8": 0.5, "int8_blocks": 0.25}
"""By precision; those of int8 are for outputs of order 10 of random networks, which are harder than trained ones."""

RECIPE = 1
"""Counted up when an export made by this package comes out otherwise."""

_PACKAGES = ("onnx", "onnxruntime", "onnxscript", "torch", "transformers")
_INSTEAD = {"onnxruntime": ("onnxruntime-gpu",)}


@final
class OnnxRuntimeModel(Model):
    """Returns what ``model=hf`` returns, computed by ONNX Runtime.

    The graph is exported from the checkpoint's safetensors and kept under a key of all that it depends on. No
    ``.onnx`` file of the checkpoint's own is ever opened.
    """

    def __init__(self, config: OnnxRuntimeConfig, context: StageContext) -> None:
        """Find the graph in the cache, or export it.

        :raises CheckpointError: if the checkpoint lacks the head, or cannot be exported.
        :raises ConfigError: if there is no such head, a package is missing, or the cache cannot be written.
        :raises DeviceError: if ONNX Runtime here does not run on the device.
        """
        head = config.head or context.head
        check_head_name(head)
        found = required_versions("model=onnxruntime", _PACKAGES, _INSTEAD)
        check_device(context.device)
        root = default_folder("onnx") if config.cache_dir is None else Path(config.cache_dir).expanduser()
        key = graph_key(context, head, RECIPE, found)
        folder, self._facts = _graph(root, context, key, config.precision)
        self._session = Session(folder / MODEL, context.device)
        self._precision = config.precision
        self._folder = folder

    @property
    def details(self) -> Mapping[str, Any]:
        """The precision, ONNX Runtime's provider, and the folder of the graph."""
        return {"precision": self._precision, "provider": self._session.provider, "graph": str(self._folder)}

    @property
    def supported_sides(self) -> frozenset[Side]:
        """The padding sides that leave the float32 graph's answers as they are, tried out after the export."""
        return self._facts.sides

    @property
    def tolerance(self) -> float:
        """1e-5 in float32; for outputs of order 10, 0.5 in int8 and 0.25 in int8_blocks."""
        return TOLERANCES[self._precision]

    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Run the graph; rows that it may not see together are run apart.

        :returns: the tensors of the head, float32.
        """
        return run_graph(self._session, self._facts, batch)


def _graph(root: Path, context: StageContext, key: Mapping[str, Any], precision: Precision) -> tuple[Path, GraphInfo]:
    """Find the graph below `root`, or make it; one in int8 is made from the one in float32, which is kept too."""
    if precision == "float32":
        return find_graph(root, context, key, Onnx())

    def quantize_it(folder: Path) -> dict[str, Any]:
        whole, facts = find_graph(root, context, key, Onnx())
        quantize(context.checkpoint, whole / MODEL, precision, folder / MODEL)
        Session(folder / MODEL, Device())  # a graph that does not load is not kept
        return facts.to_json()

    reduced = precision == "int8" and needs_reduced_range()
    folder, facts = cached(root, {**key, "precision": precision, "reduced_range": reduced}, quantize_it)
    return folder, GraphInfo.from_json(facts)
