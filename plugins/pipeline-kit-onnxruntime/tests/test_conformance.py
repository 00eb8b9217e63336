"""The conformance suite, on two architectures and every precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pk_onnxruntime
import pytest
from pk_onnxruntime.stage import TOLERANCES

from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Device
from pipeline_kit.testing import ModelConformance
from pipeline_kit.testing.graph_suite import GraphContexts

pytest_plugins = ("onnx_fixtures",)


class TestBert(ModelConformance):
    stage = "onnxruntime"
    register = pk_onnxruntime.register
    architecture: ClassVar[str] = "bert"

    @pytest.fixture(autouse=True)
    def use_checkpoint(self, make_context: GraphContexts) -> None:
        self.given = replace(make_context(self.architecture), tokenizer=None)

    def context(self, device: Device | None = None) -> StageContext:
        return replace(self.given, device=device or Device())


class TestLlama(TestBert):
    architecture = "llama"


class TestInBlocks(TestBert):
    options: ClassVar[Mapping[str, Any]] = {"precision": "int8_blocks"}


class TestInt8(TestBert):
    """Activations are scaled by the range they have in the batch, so answers move with their neighbours."""

    options: ClassVar[Mapping[str, Any]] = {"precision": "int8"}
    tolerance = TOLERANCES["int8"]
