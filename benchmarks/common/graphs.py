"""A classifier's network as a graph of another runtime, exported as that runtime's own users would."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .checkpoints import kept

__all__ = ["Graph", "Ints", "onnx_graph", "onnx_runner", "openvino_runner"]

Ints = np.ndarray[Any, np.dtype[np.int64]]
Graph = Callable[[Mapping[str, Ints]], np.ndarray[Any, Any]]
"""Takes ``input_ids`` and ``attention_mask``, ``[B, T]``, and gives the logits ``[B, L]``."""

Kind = Literal["float32", "fused", "int8"]


def onnx_runner(path: Path, threads: int) -> Graph:
    """Load an ONNX graph into ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(given: Mapping[str, Ints]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = session.run(["logits"], dict(given))[0]
        return found

    return run


def openvino_runner(checkpoint: Path, work: Path, threads: int) -> Graph:
    """Convert the network with OpenVINO's own converter, and compile it for float32."""
    import openvino

    def convert(folder: Path) -> None:
        network, inputs = _network(checkpoint)
        with _silent():
            openvino.save_model(
                openvino.convert_model(network, example_input=inputs), folder / "model.xml", compress_to_fp16=False
            )

    folder = kept(_place(checkpoint, work, "openvino", "openvino"), convert)
    core = openvino.Core()
    # Without the hint it computes in bfloat16 where the processor can.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(core.read_model(folder / "model.xml"), "CPU", settings).create_infer_request()

    def run(given: Mapping[str, Ints]) -> np.ndarray[Any, Any]:
        found = request.infer(dict(given))
        return np.array(found["logits"])

    return run


def onnx_graph(checkpoint: Path, work: Path, kind: Kind) -> Path:
    """Export to ONNX through ``transformers.exporters``.

    ``fused`` also has the exporter's fusions for ONNX Runtime on a CPU; ``int8`` is `float32` after ONNX Runtime's
    dynamic quantisation, weights by output channel.
    """

    def make(folder: Path) -> None:
        if kind == "int8":
            _quantize(onnx_graph(checkpoint, work, "float32"), folder / "model.onnx")
        else:
            _export(checkpoint, folder, "cpu" if kind == "fused" else None)

    return kept(_place(checkpoint, work, "onnxruntime", kind), make) / "model.onnx"


def _export(checkpoint: Path, folder: Path, fusions: Literal["cpu"] | None) -> None:
    import onnx_ir
    import torch
    from transformers.exporters import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    network, inputs = _network(checkpoint)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {name: {0: dynamic, 1: dynamic} for name in inputs}
    with _silent():
        exported = OnnxExporter().export(network, inputs, OnnxConfig(dynamic_shapes=shapes, ort_fusions=fusions))
        onnx_ir.save(exported.program, str(folder / "model.onnx"), external_data="model.onnx.data")


def _quantize(source: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _silent():
        quantize_dynamic(source, path, per_channel=True, weight_type=QuantType.QInt8)


def _network(checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    """Load the network with an input of two rows, one of them padded."""
    import torch
    import transformers

    with _silent():
        network = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    ids = torch.arange(5, 23).reshape(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return network, {"input_ids": ids, "attention_mask": mask}


def _place(checkpoint: Path, work: Path, package: str, kind: str) -> Path:
    made_by = "-".join(version(name) for name in (package, "torch", "transformers"))
    return work / f"{checkpoint.name}-{kind}-{made_by}"


@contextmanager
def _silent() -> Iterator[None]:
    """Keep exporters, which print and log as they go, from the terminal."""
    from pipeline_kit.builtin.quiet import quiet

    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
