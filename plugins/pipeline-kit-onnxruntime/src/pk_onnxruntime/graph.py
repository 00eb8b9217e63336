"""A graph of ONNX: what loads and runs it, and its form with int8 weights."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch

from pipeline_kit.graphs import Graph, silence
from pipeline_kit.kit import Checkpoint, CheckpointError, Device, DeviceError, for_message

MODEL = "model.onnx"
"""A graph's file; its weights are in another one beside it."""


@final
class Session(Graph):
    """A graph that is loaded."""

    def __init__(self, path: Path, device: Device) -> None:
        """Load `path`.

        :raises DeviceError: if the GPU cannot be used after all.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = device.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised, too
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.kind == "cuda":
            index = int(device.name.partition(":")[2] or 0)
            # TF32 would round the inputs of every product to ten bits.
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": index, "use_tf32": 0}))
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self.provider: str = self._session.get_providers()[0]
        if device.kind == "cuda" and self.provider != "CUDAExecutionProvider":
            raise DeviceError(f"onnxruntime could not use {device.name}; are its CUDA and cuDNN libraries installed?")
        self._names = [item.name for item in self._session.get_inputs()]

    def __call__(self, given: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Run the graph."""
        arrays = {name: given[name].cpu().contiguous().numpy() for name in self._names}
        try:
            found = self._session.run(list(names), arrays)
        except Exception as error:
            lack = "alloc" in str(error).lower() and "memory" in str(error).lower()
            raise RuntimeError(f"{'out of memory: ' if lack else ''}onnxruntime: {error}") from error
        device = given["input_ids"].device
        return {name: torch.from_numpy(array).to(device) for name, array in zip(names, found, strict=True)}


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
