"""The conformance suite on the engines of ``model=hf``, each at the tolerance that it declares."""

from __future__ import annotations

from typing import ClassVar

import pytest
from harness import checkpoint

from pipeline_kit.builtin.models.hf.linears import can_quantize
from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Device
from pipeline_kit.testing import ModelConformance


class Engine(ModelConformance):
    """A classifier on a tiny BERT."""

    stage = "hf"
    dtype: ClassVar[str] = "float32"

    def context(self, device: Device | None = None) -> StageContext:
        found = resolve_checkpoint(CheckpointConfig(path=str(checkpoint())))
        return StageContext(found, device or Device(dtype=self.dtype), "sequence-classification")


needs_int8 = pytest.mark.skipif(not can_quantize(), reason="torch has no products in int8 here")


class TestEager(Engine):
    options: ClassVar = {"linear": "eager"}


class TestPacked(Engine):
    options: ClassVar = {"linear": "auto"}


class TestBfloat16(Engine):
    dtype = "bfloat16"
    tolerance = 0.02


@needs_int8
class TestInt8(Engine):
    tolerance = 0.05
    options: ClassVar = {"quantization": "int8"}


@needs_int8
class TestInt8PerToken(Engine):
    tolerance = 0.005  # a difference of 1e-7 in attention may be rounded the other way
    options: ClassVar = {"quantization": "int8_per_token"}
