"""The model ``onnxruntime``: the checkpoint's network as a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from pipeline_kit.graphs import GraphModel
from pipeline_kit.kit import Checkpoint, ConfigError, Device, DeviceError, Fault

from . import Precision
from .graph import MODEL, Session, needs_reduced_range, quantize

TOLERANCES = {"float32": 1e-5, "int8": 0.5, "int8_blocks": 0.25}
"""By precision; those of int8 are for outputs of order 10 of random networks, which are harder than trained ones."""


@final
class OnnxRuntimeModel(GraphModel):
    """Returns what ``model=hf`` returns, computed by ONNX Runtime.

    One in int8 is made from the one in float32, which is kept too.
    """

    stage: ClassVar[str] = "onnxruntime"
    format: ClassVar[str] = "ONNX"
    cache: ClassVar[str] = "onnx"
    recipe: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxscript", "torch", "transformers")
    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {"onnxruntime": ("onnxruntime-gpu",)}
    tolerances: ClassVar[Mapping[str, float]] = TOLERANCES

    @property
    def runtime_info(self) -> Mapping[str, Any]:
        """The precision, ONNX Runtime's provider, and the folder of the graph."""
        return {**super().runtime_info, "provider": self._graph.provider}

    def check(self, device: Device, precision: Precision) -> None:
        """Refuse half precision, and a device that this build of ONNX Runtime does not run on."""
        del precision
        import onnxruntime

        if device.dtype != "float32":
            problem = f"model=onnxruntime has no {device.dtype}."
            hint = "set device.dtype=float32; on a CPU model.precision=int8 is faster"
            raise ConfigError([Fault("device.dtype", problem, ("float32",), hint=hint)])
        if device.kind == "cpu":
            return
        if device.kind != "cuda":
            raise DeviceError(f"model=onnxruntime does not run on {device.kind}; set device=cpu, or use model=hf")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise DeviceError(
                f"onnxruntime {onnxruntime.__version__} here has no CUDA provider; run: pip uninstall onnxruntime; "
                "pip install onnxruntime-gpu. Or set device=cpu, or use model=hf"
            )

    def derived_from(self, precision: Precision) -> Mapping[str, Any] | None:
        """See :class:`~pipeline_kit.graphs.graphs.GraphModel`."""
        reduced = precision == "int8" and needs_reduced_range()
        return None if precision == "float32" else {"precision": precision, "reduced_range": reduced}

    def derive(
        self, checkpoint: Checkpoint, source: Path, precision: Literal["int8", "int8_blocks"], folder: Path
    ) -> dict[str, Any]:
        """See :class:`~pipeline_kit.graphs.graphs.GraphModel`."""
        quantize(checkpoint, source / MODEL, precision, folder / MODEL)
        Session(folder / MODEL, Device())  # a graph that does not load is not kept
        return {}

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
        """Write ``model.onnx`` and ``model.onnx.data``."""
        import onnx_ir

        onnx_ir.save(program, str(folder / MODEL), external_data=f"{MODEL}.data")

    def load(self, folder: Path, device: Device, precision: Precision, facts: Mapping[str, Any]) -> Session:
        """Return a session."""
        del precision, facts
        return Session(folder / MODEL, device)
