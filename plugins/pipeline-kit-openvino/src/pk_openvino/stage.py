"""The model ``openvino``: the checkpoint's network as a graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

from pipeline_kit.graphs import GraphModel
from pipeline_kit.kit import Checkpoint, ConfigError, Device, DeviceError, Fault

from . import Precision
from .graph import MODEL, Compiled, compress, has_bfloat16, has_int8, openvino, write

TOLERANCES = {"float32": 1e-5, "bfloat16": 0.25, "int8": 0.75}
"""By precision; all but the first are for outputs of order 10 of random networks, harder than trained ones."""

_log = logging.getLogger(__name__)


@final
class OpenVinoModel(GraphModel):
    """Returns what ``model=hf`` returns, computed by OpenVINO on the CPU.

    One compiled graph takes batches of every shape. One in int8 is made of the one in float32, which is kept too;
    bfloat16 rounds the weights of the float32 graph when it is loaded.
    """

    stage: ClassVar[str] = "openvino"
    format: ClassVar[str] = "OpenVINO"
    cache: ClassVar[str] = "openvino"
    recipe: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ("openvino", "torch", "transformers")
    tolerances: ClassVar[Mapping[str, float]] = TOLERANCES

    def check(self, device: Device, precision: Precision) -> None:
        """Refuse a GPU, half precision as a device's, and bfloat16 where it would be emulated.

        Where int8 brings nothing but a smaller file, that is logged.
        """
        if device.kind != "cpu":
            raise DeviceError(f"model=openvino does not run on {device.kind}; set device=cpu, or use model=hf")
        if device.dtype != "float32":
            problem = f"model=openvino has no {device.dtype}."
            hint = "set device.dtype=float32 and model.precision=bfloat16 or int8"
            raise ConfigError([Fault("device.dtype", problem, ("float32",), hint=hint)])
        if precision == "bfloat16" and not has_bfloat16():
            problem = "OpenVINO has no bfloat16 on this processor, which lacks the instructions."
            raise ConfigError([Fault("model.precision", problem, ("float32", "int8"), hint="use one of these")])
        if precision == "int8" and not has_int8():
            _log.warning(
                "OpenVINO has no products in int8 on this processor; model.precision=float32 is as fast or faster"
            )

    def derived_from(self, precision: Precision) -> Mapping[str, Any] | None:
        """See :class:`~pipeline_kit.graphs.graphs.GraphModel`."""
        return {"precision": "int8"} if precision == "int8" else None

    def derive(self, checkpoint: Checkpoint, source: Path, precision: Precision, folder: Path) -> dict[str, Any]:
        """See :class:`~pipeline_kit.graphs.graphs.GraphModel`.

        :returns: ``group``, how many inputs of its products share a scale.
        """
        del precision
        group = compress(checkpoint, source, folder)
        Compiled(folder / MODEL, Device(), group=group)  # a graph that does not load is not kept
        return {"group": group}

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
        """Write ``model.xml`` and ``model.bin``."""
        write(program, folder)

    def load(self, folder: Path, device: Device, precision: Precision, facts: Mapping[str, Any]) -> Compiled:
        """Return the compiled graph."""
        return Compiled(folder / MODEL, device, bfloat16=precision == "bfloat16", group=facts.get("group", 0))
