"""An ONNX Runtime session: where it runs, with how many threads, and tensors in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from pipeline_kit.contract.types import Device
from pipeline_kit.errors import ConfigError, DeviceError, Fault
from pipeline_kit.graphs.format import Graph

__all__ = ["Session", "check_device"]


def check_device(device: Device) -> None:
    """Refuse a device that this build of ONNX Runtime does not run on.

    :raises DeviceError: if it is not a CPU and not a GPU that ONNX Runtime has a provider for.
    :raises ConfigError: if it asks for half precision.
    """
    import onnxruntime

    if device.dtype != "float32":
        hint = "set device.dtype=float32; on a CPU model.precision=int8 is faster"
        raise ConfigError([Fault("device.dtype", f"model=onnxruntime has no {device.dtype}.", ("float32",), hint=hint)])
    if device.kind == "cpu":
        return
    if device.kind != "cuda":
        raise DeviceError(f"model=onnxruntime does not run on {device.kind}; set device=cpu, or use model=hf")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"onnxruntime {onnxruntime.__version__} here has no CUDA provider; run: pip uninstall onnxruntime; "
            "pip install onnxruntime-gpu. Or set device=cpu, or use model=hf"
        )


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
