"""The stage: what all exported graphs owe, and what is ONNX Runtime's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from pk_onnxruntime import OnnxRuntimeConfig
from pk_onnxruntime.stage import OnnxRuntimeModel

from pipeline_kit.kit import ConfigError, Device, DeviceError
from pipeline_kit.testing import GraphContexts, GraphModelSuite, compose_config

pytest_plugins = ("onnx_fixtures",)


class TestGraphs(GraphModelSuite):
    stage: ClassVar[str] = "onnxruntime"
    plugin: ClassVar[str] = "pk_onnxruntime"
    model: ClassVar[type[Any]] = OnnxRuntimeModel
    config: ClassVar[type[Any]] = OnnxRuntimeConfig
    graph: ClassVar[tuple[str, str]] = ("model.onnx", "model.onnx.data")
    folder: ClassVar[str] = "onnx"
    packages: ClassVar[Sequence[str]] = ("onnxruntime", "onnxscript", "onnx", "torch", "transformers")
    derived: ClassVar[Sequence[str]] = ("int8", "int8_blocks")
    absent: ClassVar[Sequence[str]] = ("onnx", "onnxscript", "transformers")


@pytest.mark.parametrize(
    ("device", "kind", "message"),
    [
        (Device("cuda:0"), DeviceError, "pip install onnxruntime-gpu"),
        (Device("mps"), DeviceError, "does not run on mps"),
        (Device("cpu", "bfloat16"), ConfigError, r"device\.dtype: model=onnxruntime has no bfloat16"),
    ],
)
def test_a_device_it_does_not_run_on_is_refused(
    device: Device, kind: type[Exception], message: str, make_context: GraphContexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(kind, match=message):
        OnnxRuntimeModel(OnnxRuntimeConfig(), replace(make_context("bert"), device=device))


def test_the_preset_composes() -> None:
    config = compose_config("model=onnxruntime_int8", "model.cache_dir=/x", plugins=["pk_onnxruntime"])
    assert config.model.options == OnnxRuntimeConfig(precision="int8", cache_dir="/x")


def test_a_mistyped_precision_is_told() -> None:
    with pytest.raises(ConfigError, match="allowed: float32, int8, int8_blocks"):
        compose_config("model=onnxruntime", "model.precision=int4", plugins=["pk_onnxruntime"])
