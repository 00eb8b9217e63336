"""From a float32 graph to one whose weights are int8."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import CheckpointError, for_message

from .format import MODEL, write
from .runtime import openvino

__all__ = ["compress"]

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
            "all "
            f"their widths being no multiples of {_BLOCK}; use model.precision=float32"
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
