"""ONNX: how a network becomes a file of it, and what loads that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

from pipeline_kit.contract.types import Device
from pipeline_kit.graphs.format import GraphFormat

from .session import Session

__all__ = ["MODEL", "Onnx"]

MODEL = "model.onnx"
"""A graph's file; its weights are in another one beside it."""


@final
class Onnx(GraphFormat):
    """``model.onnx`` and ``model.onnx.data`` in a folder."""

    name: ClassVar[str] = "ONNX"

    def trace(self, network: Any, inputs: Mapping[str, Any], shapes: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        """Return an ``onnx_ir`` model through ``transformers.exporters``."""
        from onnx_ir.passes.common import RemoveUnusedNodesPass
        from transformers.exporters import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter

        program = OnnxExporter().export(network, dict(inputs), OnnxConfig(dynamic_shapes=dict(shapes))).program
        by_name = {value.name: value for value in program.graph.outputs}
        program.graph.outputs[:] = [by_name[name] for name in outputs]
        RemoveUnusedNodesPass()(program)
        return program

    def save(self, program: Any, folder: Path) -> None:
        """Write both files."""
        import onnx_ir

        onnx_ir.save(program, str(folder / MODEL), external_data=f"{MODEL}.data")

    def load(self, folder: Path, device: Device) -> Session:
        """Return a session."""
        return Session(folder / MODEL, device)
