"""What OpenVINO has instructions for on this processor."""

from __future__ import annotations

import numpy as np

from .runtime import openvino

__all__ = ["has_bfloat16", "has_int8"]


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
