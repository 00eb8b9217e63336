"""From a float32 graph to one whose weights are int8."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Literal

from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import CheckpointError, for_message
from pipeline_kit.graphs.cache import silence

__all__ = ["needs_reduced_range", "quantize"]

_PRODUCTS = frozenset({"MatMulInteger", "MatMulNBits", "ConvInteger"})
_BLOCK = 128  # inputs that share a scale, in the weights and, within a token, in the activations


def quantize(checkpoint: Checkpoint, source: Path, precision: Literal["int8", "int8_blocks"], path: Path) -> None:
    """Write the quantised form of the graph `source` to `path`.

    ``int8`` is dynamic quantisation: weights by output channel, activations by the range they have in a batch.
    ``int8_blocks`` has a scale for each block of 128 inputs, of a weight's row and of a token's activations.

    :raises CheckpointError: if there is nothing to quantise.
    """
    import onnx

    with silence():
        quantized = _dynamic(source) if precision == "int8" else _blocks(source)
    if not any(node.op_type in _PRODUCTS for node in quantized.graph.node):
        raise CheckpointError(
            f"the checkpoint '{for_message(checkpoint.name)}' has no products that model.precision={precision} makes "
            f"int8; use model.precision={'float32' if precision == 'int8' else 'int8'}"
        )
    onnx.save(quantized, str(path), save_as_external_data=True, location=f"{path.name}.data")


def needs_reduced_range() -> bool:
    """Return whether this processor may overflow when it adds products of int8 pairs.

    x86 without VNNI adds two of them in 16 bits; weights of 7 bits fit.
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True


def _dynamic(source: Path) -> Any:
    import onnx_ir
    from onnxruntime.quantization import QuantType
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer
    from transformers.exporters.configs import ExportFormat

    config = OnnxRuntimeDynamicConfig(per_channel=True, weight_type=QuantType.QInt8, reduce_range=needs_reduced_range())
    program = onnx_ir.load(str(source))
    return onnx_ir.to_proto(OnnxRuntimeQuantizer(config).quantize(program, {}, ExportFormat.ONNX))


def _blocks(source: Path) -> Any:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # accuracy_level 4: products in int8, where the processor has them
    quantizer = MatMulNBitsQuantizer(
        onnx.load(str(source)), block_size=_BLOCK, is_symmetric=True, accuracy_level=4, bits=8
    )
    quantizer.process()
    return quantizer.model.model
