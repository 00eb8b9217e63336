"""The stage: what all exported graphs owe, and what is OpenVINO's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pk_openvino import OpenVinoConfig
from pk_openvino.graph import has_bfloat16, has_int8
from pk_openvino.stage import OpenVinoModel

from pipeline_kit import Encoding
from pipeline_kit.kit import CheckpointError, ConfigError, Device, DeviceError, PaddingPolicy, collate
from pipeline_kit.testing import GraphContexts, GraphModelSuite, compose_config

pytest_plugins = ("openvino_fixtures",)


class TestGraphs(GraphModelSuite):
    stage: ClassVar[str] = "openvino"
    plugin: ClassVar[str] = "pk_openvino"
    model: ClassVar[type[Any]] = OpenVinoModel
    config: ClassVar[type[Any]] = OpenVinoConfig
    graph: ClassVar[tuple[str, str]] = ("model.xml", "model.bin")
    folder: ClassVar[str] = "openvino"
    packages: ClassVar[Sequence[str]] = ("openvino", "torch", "transformers")
    derived: ClassVar[Sequence[str]] = ("int8",)
    absent: ClassVar[Sequence[str]] = ("openvino_telemetry", "transformers")


@pytest.mark.parametrize(
    ("device", "kind", "message"),
    [
        (Device("cuda:0"), DeviceError, "does not run on cuda; set device=cpu, or use model=hf"),
        (Device("mps"), DeviceError, "does not run on mps"),
        (Device("cpu", "bfloat16"), ConfigError, r"(?s)device\.dtype: .*no bfloat16.*model\.precision=bfloat16"),
    ],
)
def test_a_device_it_does_not_run_on_is_refused(
    device: Device, kind: type[Exception], message: str, make_context: GraphContexts
) -> None:
    with pytest.raises(kind, match=message):
        OpenVinoModel(OpenVinoConfig(), replace(make_context("bert"), device=device))


def test_bfloat16_is_refused_where_the_processor_has_none(
    make_context: GraphContexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pk_openvino.stage.has_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match=r"(?s)model\.precision: .*no bfloat16.*allowed: float32, int8"):
        OpenVinoModel(OpenVinoConfig(precision="bfloat16"), make_context("bert"))


def test_int8_that_brings_nothing_is_told(
    make_context: GraphContexts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    OpenVinoModel(OpenVinoConfig(precision="int8"), make_context("bert"))
    monkeypatch.setattr("pk_openvino.stage.has_int8", lambda: False)
    assert "no products in int8" not in caplog.text or not has_int8()
    OpenVinoModel(OpenVinoConfig(precision="int8"), make_context("bert"))
    assert "no products in int8" in caplog.text


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no list of the processor's instructions")
def test_the_probe_for_int8_finds_what_the_processor_has() -> None:
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    if not flags & {"avx2", "avx512_vnni", "avx_vnni"}:
        pytest.skip("no x86")
    assert has_int8() is bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")
def test_bfloat16_runs_the_float32_graph_and_rounds(make_context: GraphContexts) -> None:
    context = make_context("bert")
    whole, half = (OpenVinoModel(OpenVinoConfig(precision=name), context) for name in ("float32", "bfloat16"))
    assert whole.runtime_info["graph"] == half.runtime_info["graph"]
    batch = collate([Encoding([5, 6, 7], token_type_ids=[0, 0, 0])], PaddingPolicy("longest", "right", 0), "cpu")
    apart = float((whole.forward(batch)["logits"] - half.forward(batch)["logits"]).abs().max())
    assert 1e-4 < apart <= half.tolerance, "one of the two computes in the other's precision"


@pytest.mark.parametrize("threads", [1, 2])
def test_it_takes_the_threads_of_the_device(
    threads: int, make_context: GraphContexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as were asked for, and free to move: two processes with pinned threads share a processor."""
    import openvino

    compiled: list[Any] = []
    compile_model = openvino.Core.compile_model

    def spy(*args: Any) -> Any:
        compiled.append(compile_model(*args))
        return compiled[-1]

    monkeypatch.setattr("openvino.Core.compile_model", spy)
    context = make_context("bert")
    OpenVinoModel(OpenVinoConfig(), replace(context, device=Device(threads=threads)))
    [one] = compiled
    assert one.get_property("INFERENCE_NUM_THREADS") == threads
    assert one.get_property("ENABLE_CPU_PINNING") is False
    assert one.get_property("NUM_STREAMS") == 1


@pytest.mark.parametrize(
    ("told", "expected"), [("std::bad_alloc", "out of memory: "), ("Shape mismatch", "openvino: Shape")]
)
def test_lack_of_memory_is_told_in_torchs_words(told: str, expected: str, make_context: GraphContexts) -> None:
    """The pipeline halves its batches at these words."""
    stage = OpenVinoModel(OpenVinoConfig(), make_context("distilbert"))

    class Request:
        def infer(self, *_: Any, **__: Any) -> None:
            raise RuntimeError(told)

    stage._graph._request = Request()
    batch = collate([Encoding([5, 6, 7])], PaddingPolicy("longest", "right", 0), "cpu")
    with pytest.raises(RuntimeError, match=expected):
        stage.forward(batch)


def test_int8_without_a_width_that_fits_is_refused(make_context: GraphContexts, tmp_path: Path) -> None:
    context = make_context("bert", hidden_size=36, intermediate_size=44, num_attention_heads=2)
    with pytest.raises(CheckpointError, match=r"multiples of 16; use model\.precision=float32"):
        OpenVinoModel(OpenVinoConfig(precision="int8"), context)


def test_nothing_is_reported_over_the_network(tmp_path: Path) -> None:
    """OpenVINO reports each import and conversion to its maker and writes to the home folder, if it can."""
    code = (
        "import sys; from pk_openvino.graph import openvino; openvino().Core();"
        "import openvino.tools.ovc as o; o.convert_model;"
        "print(sorted(m for m in sys.modules if m.startswith('openvino_telemetry')), type(o.telemetry).__module__)"
    )
    env = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[] openvino.tools.ovc.telemetry_stub\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_the_presets_compose(precision: Any) -> None:
    config = compose_config(f"model=openvino_{precision}", "model.cache_dir=/x", plugins=["pk_openvino"])
    assert config.model.options == OpenVinoConfig(precision=precision, cache_dir="/x")


def test_a_mistyped_precision_is_told() -> None:
    with pytest.raises(ConfigError, match="allowed: float32, bfloat16, int8"):
        compose_config("model=openvino", "model.precision=bf16", plugins=["pk_openvino"])
