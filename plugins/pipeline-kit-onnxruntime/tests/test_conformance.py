"""The conformance suite, on every precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pk_onnxruntime
import pytest
from pk_onnxruntime.stage import TOLERANCES

from pipeline_kit import StageContext
from pipeline_kit.kit import Device
from pipeline_kit.testing import GraphContexts, ModelConformance

pytest_plugins = ("onnx_fixtures",)


class TestBert(ModelConformance):
    stage = "onnxruntime"
    register = pk_onnxruntime.register

    @pytest.fixture(autouse=True)
    def use_checkpoint(self, make_context: GraphContexts) -> None:
        self.given = replace(make_context("bert"), tokenizer=None)

    def context(self, device: Device | None = None) -> StageContext:
        return replace(self.given, device=device or Device())


class TestInBlocks(TestBert):
    options: ClassVar[Mapping[str, Any]] = {"precision": "int8_blocks"}


class TestInt8(TestBert):
    """Activations are scaled by the range they have in the batch, so answers move with their neighbours."""

    options: ClassVar[Mapping[str, Any]] = {"precision": "int8"}
    tolerance = TOLERANCES["int8"]
