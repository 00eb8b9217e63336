"""Our engines as sides, and why one of them is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline_kit.bench.sides import PipelineSide
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.compose.build import build
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.plugins import installed
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import RowFailure, for_message

from .script import tell

__all__ = ["ENGINES", "OURS", "PLAIN", "REFERENCE", "engine", "engines", "reason"]

OURS = "pipeline-kit"
PLAIN = ("float32", "bfloat16", "int8", "int8_per_token")
"""The engines that need no plugin."""
ENGINES: dict[str, tuple[str, ...]] = {
    "float32": (),
    "bfloat16": ("device.dtype=bfloat16",),
    "int8": ("model.quantization=int8",),
    "int8_per_token": ("model.quantization=int8_per_token",),
    "onnxruntime float32": ("model=onnxruntime",),
    "onnxruntime int8": ("model=onnxruntime", "model.precision=int8"),
    "openvino float32": ("model=openvino",),
    "openvino bfloat16": ("model=openvino", "model.precision=bfloat16"),
    "openvino int8": ("model=openvino", "model.precision=int8"),
}
REFERENCE = f"{OURS} float32"


def engine(name: str, *overrides: str) -> PipelineSide:
    """Build the engine `name` for the pipeline that `overrides` compose."""
    config = compose(["device=cpu", *overrides, *ENGINES[name]])
    return PipelineSide(f"{OURS} {name}", build(config), config)


def engines(
    names: Iterable[str], overrides: Sequence[str], trial: Sequence[Example]
) -> tuple[list[PipelineSide], dict[str, str]]:
    """Build several engines, float32 first; leave out what this machine or installation cannot run.

    :param trial: examples that each engine has to answer before it is measured.
    :returns: the sides, and by engine why it is not a side.
    :raises PipelineKitError: or whatever else it is, if float32 cannot run.
    """
    sides: list[PipelineSide] = []
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(("float32", *names)):
        tell(f"loading {OURS} {name}")
        problem = _missing(name)
        if problem is None:
            try:
                with quiet():
                    side = engine(name, *overrides)
                    problem = _fails(side, trial)
            except Exception as error:  # a plugin or a runtime that breaks must not end the others' measurement
                if name == "float32":
                    raise
                problem = reason(error)
            else:
                if problem is None:
                    sides.append(side)
        if problem is not None:
            left_out[name] = problem
            tell(f"  left out: {problem}")
    return sides, left_out


def reason(error: Exception) -> str:
    """Return the first line of an error, short enough for a table."""
    return for_message(next(iter(str(error).splitlines()), type(error).__name__), 200)


def _missing(name: str) -> str | None:
    """Return whether the engine is a plugin's that is not installed."""
    plugin = name.partition(" ")[0] if " " in name else None
    return None if plugin is None or plugin in {found.name for found in installed()} else "not installed"


def _fails(side: PipelineSide, trial: Sequence[Example]) -> str | None:
    failures = [item for item in side.pipeline.results_or_failures(trial) if isinstance(item, RowFailure)]
    return f"fails in the {failures[0].stage}: {for_message(failures[0].message, 160)}" if failures else None
