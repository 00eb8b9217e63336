"""OpenVINO: the runtime, what loads and runs a graph of it, and a graph's form with int8 weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from pipeline_kit.graphs import Graph
from pipeline_kit.kit import Checkpoint, CheckpointError, Device, for_message

_REPORTS = "openvino_telemetry"


def openvino() -> Any:
    """Return the module ``openvino``.

    It reports each import and each conversion to its maker over the network unless the user has refused, and writes
    to their home folder. Without the package for that, which is hidden here while it is imported, it has a stub.
    Where the process has imported it before, that is left as it is.
    """
    if "openvino" not in sys.modules:
        before = sys.modules.get(_REPORTS)
        sys.modules[_REPORTS] = None  # type: ignore[assignment]  # an import of it now fails
        try:
            import_module("openvino.tools.ovc.convert_impl")
        finally:
            if before is None:
                del sys.modules[_REPORTS]
            else:
                sys.modules[_REPORTS] = before
    return sys.modules["openvino"]


MODEL = "model.xml"
"""A graph's file; its weights are in ``model.bin`` beside it."""


def write(program: Any, folder: Path) -> None:
    """Write `program` into `folder`; its float32 weights stay float32, which OpenVINO would halve."""
    openvino().save_model(program, str(folder / MODEL), compress_to_fp16=False)


@final
class Compiled(Graph):
    """A graph that is loaded."""

    def __init__(self, path: Path, device: Device, *, bfloat16: bool = False, group: int = 0) -> None:
        """Load `path`.

        :param bfloat16: compute in it; else in float32, whatever the processor has.
        :param group: inputs of a product in int8 that share a scale; 0 if there are none.
        :raises RuntimeError: if OpenVINO cannot compile the graph.
        """
        core = openvino().Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": device.threads,
            "ENABLE_HYPER_THREADING": True,  # else there may be fewer threads than were asked for
            "ENABLE_CPU_PINNING": False,  # pinned, two processes of one thread each share one processor
            # OpenVINO takes bfloat16 by itself where there is any.
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
        }
        compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
        self._request: Any = compiled.create_infer_request()
        self._names = [port.get_any_name() for port in compiled.inputs]

    def __call__(self, given: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Run the graph."""
        arrays = {name: given[name].contiguous().numpy() for name in self._names}
        try:
            found = self._request.infer(arrays, share_inputs=True, share_outputs=False)
        except Exception as error:
            text = str(error)
            lack = "bad_alloc" in text or ("alloc" in text.lower() and "memory" in text.lower())
            raise RuntimeError(f"{'out of memory: ' if lack else ''}openvino: {text}") from error
        return {name: torch.from_numpy(found[name]) for name in names}


_BLOCK = 16  # OpenVINO's products in int8 take their inputs in so many at a time
_FEWEST = 16  # outputs of a product for which int8 is worth its error; the last layer of a classifier has fewer


def compress(checkpoint: Checkpoint, source: Path, folder: Path) -> int:
    """Write the graph in the folder `source` into `folder`, with int8 weights, a scale for each output of a product.

    :returns: how many inputs of a product can share a scale: a divisor of the width of each that was compressed.
    :raises CheckpointError: if there is nothing to compress.
    """
    model = openvino().Core().read_model(str(source / MODEL))
    products = [node for node in model.get_ordered_ops() if _fits(node)]
    if not products:
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' has no products that model.precision=int8 makes int8, "
            f"all their widths being no multiples of {_BLOCK}; use model.precision=float32"
        )
    done: dict[str, Any] = {}  # ALBERT's layers share their weights
    for product in products:
        _replace(product, done)
    model.validate_nodes_and_infer_types()
    write(model, folder)
    return math.gcd(*(_rows(product).shape[1] for product in products))


def _fits(node: Any) -> bool:
    if node.get_type_name() != "MatMul" or node.input_value(1).get_node().get_type_name() != "Constant":
        return False
    weight = node.input_value(1)
    if weight.get_element_type() != openvino().Type.f32 or len(weight.get_shape()) != 2:
        return False
    outputs, inputs = _rows(node).shape
    return bool(inputs % _BLOCK == 0 and outputs >= _FEWEST)


def _rows(product: Any) -> Any:
    """Return a product's weights, outputs first."""
    weights = product.input_value(1).get_node().data
    return weights if product.get_attributes()["transpose_b"] else weights.T


def _replace(product: Any, done: dict[str, Any]) -> None:
    ops = openvino().opset14
    attributes, name = product.get_attributes(), product.input_value(1).get_node().get_friendly_name()
    key = f"{name} {attributes['transpose_b']}"
    if key not in done:
        rows = _rows(product)
        scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
        rounded = np.rint(rows / scales).astype(np.int8)
        whole = ops.convert(ops.constant(np.ascontiguousarray(rounded)), "f32")
        done[key] = ops.multiply(whole, ops.constant(scales.astype(np.float32)))
    instead = ops.matmul(product.input_value(0), done[key], attributes["transpose_a"], True)
    instead.set_friendly_name(product.get_friendly_name())
    product.output(0).replace(instead.output(0))


def has_bfloat16() -> bool:
    """Return whether OpenVINO has kernels for bfloat16."""
    return "BF16" in openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def has_int8() -> bool:
    """Return whether OpenVINO multiplies int8 weights in int8; where it does not, it widens them to float32 each time.

    It says so nowhere, so one product is tried, whose inputs show whether they were rounded to 1/127 of the largest.
    """
    ops = openvino().opset14
    ones = np.ones((16, 16), np.int8)
    weights = ops.multiply(ops.convert(ops.constant(ones), "f32"), ops.constant(np.ones((16, 1), np.float32)))
    given = ops.parameter([-1, 16], np.float32)
    model = openvino().Model([ops.matmul(given, weights, False, True)], [given], "probe")
    settings = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 16, "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    inputs = np.full((4, 16), 0.3 / 127, np.float32)
    inputs[:, 0] = 1
    found = openvino().Core().compile_model(model, "CPU", settings)([inputs])[0]
    return not np.allclose(found, inputs.sum(axis=1, keepdims=True), atol=1e-4)
