"""The conformance suite, on every precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pk_openvino
import pytest
from pk_openvino.graph import has_bfloat16
from pk_openvino.stage import TOLERANCES

from pipeline_kit import StageContext
from pipeline_kit.kit import Device
from pipeline_kit.testing import GraphContexts, ModelConformance

pytest_plugins = ("openvino_fixtures",)


class TestBert(ModelConformance):
    stage = "openvino"
    register = pk_openvino.register

    @pytest.fixture(autouse=True)
    def use_checkpoint(self, make_context: GraphContexts) -> None:
        self.given = replace(make_context("bert"), tokenizer=None)

    def context(self, device: Device | None = None) -> StageContext:
        return replace(self.given, device=device or Device())


class TestInt8(TestBert):
    """Activations are scaled within each token, so answers do not move with their neighbours."""

    options: ClassVar[Mapping[str, Any]] = {"precision": "int8"}


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")
class TestBfloat16(TestBert):
    options: ClassVar[Mapping[str, Any]] = {"precision": "bfloat16"}
    tolerance = TOLERANCES["bfloat16"]
