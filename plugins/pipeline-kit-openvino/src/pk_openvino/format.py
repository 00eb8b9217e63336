"""OpenVINO's own form of a graph: how a network becomes it, and what loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

from pipeline_kit.contract.types import Device
from pipeline_kit.graphs.format import GraphFormat

from .compiled import Compiled
from .runtime import openvino

__all__ = ["MODEL", "OpenVino", "write"]

MODEL = "model.xml"
"""A graph's file; its weights are in ``model.bin`` beside it."""


@final
class OpenVino(GraphFormat):
    """``model.xml`` and ``model.bin`` in a folder."""

    name: ClassVar[str] = "OpenVINO"

    def trace(self, network: Any, inputs: Mapping[str, Any], shapes: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        """Return an ``openvino.Model`` through ``transformers.exporters``."""
        openvino()
        from transformers.exporters import OpenVINOConfig
        from transformers.exporters.exporter_openvino import OpenVINOExporter

        config = OpenVINOConfig(dynamic_shapes=dict(shapes), stateful=False)
        program = OpenVINOExporter().export(network, dict(inputs), config).program
        for port in program.outputs:
            if not port.get_names() & set(outputs):
                program.remove_result(port.get_node())
        program.validate_nodes_and_infer_types()
        return program

    def save(self, program: Any, folder: Path) -> None:
        """Write both files."""
        write(program, folder)

    def load(self, folder: Path, device: Device) -> Compiled:
        """Return a graph that computes in float32."""
        return Compiled(folder / MODEL, device)


def write(program: Any, folder: Path) -> None:
    """Write `program` into `folder`; its float32 weights stay float32, which OpenVINO would halve."""
    openvino().save_model(program, str(folder / MODEL), compress_to_fp16=False)
