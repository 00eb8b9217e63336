"""A compiled graph: with how many threads and in which precision it runs, and tensors in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from pipeline_kit.contract.types import Device
from pipeline_kit.errors import ConfigError, DeviceError, Fault
from pipeline_kit.graphs.format import Graph

from .runtime import openvino

__all__ = ["Compiled", "check_device"]


def check_device(device: Device) -> None:
    """Refuse what this plugin does not run on.

    :raises DeviceError: if it is not a CPU.
    :raises ConfigError: if it asks for half precision, which is an option of the model here.
    """
    if device.kind != "cpu":
        raise DeviceError(f"model=openvino does not run on {device.kind}; set device=cpu, or use model=hf")
    if device.dtype != "float32":
        hint = "set device.dtype=float32 and model.precision=bfloat16 or int8"
        raise ConfigError([Fault("device.dtype", f"model=openvino has no {device.dtype}.", ("float32",), hint=hint)])


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
