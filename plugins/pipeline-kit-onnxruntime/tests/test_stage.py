"""The stage: when it exports, what it refuses, what it leaves alone, and that it keeps quiet."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pk_onnxruntime
import pytest
from pk_onnxruntime import OnnxRuntimeConfig
from pk_onnxruntime.stage import OnnxRuntimeModel

from pipeline_kit.builtin import register as register_builtin
from pipeline_kit.compose import compose
from pipeline_kit.errors import CheckpointError, ConfigError, DeviceError
from pipeline_kit.padding import PaddingPolicy, collate
from pipeline_kit.registry import Registry
from pipeline_kit.stages import StageContext
from pipeline_kit.testing import tiny_checkpoint
from pipeline_kit.types import Device, Encoding

if TYPE_CHECKING:
    from onnx_fixtures import MakeContext

pytest_plugins = ("onnx_fixtures",)


def build(context: StageContext, **options: Any) -> OnnxRuntimeModel:
    return OnnxRuntimeModel(OnnxRuntimeConfig(**options), context)


def forbid_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr("pk_onnxruntime.export.export", fails)


def test_an_export_is_used_again(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(make_context("bert"))
    forbid_exports(monkeypatch)
    assert build(make_context("bert")).details == first.details


def test_each_thing_it_depends_on_has_a_graph_of_its_own(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, head, whether there are token types, and every version."""
    context = make_context("bert")
    graph = Path(build(context).details["graph"])
    shutil.copytree(graph, tmp_path / graph.name)
    forbid_exports(monkeypatch)
    build(context, cache_dir=str(tmp_path))
    for other in (make_context("bert", seed=5), replace(context, head="base"), replace(context, tokenizer=None)):
        with pytest.raises(AssertionError, match="exported again"):
            build(other, cache_dir=str(tmp_path))
    monkeypatch.setattr("pk_onnxruntime.needs.version", lambda name: "99")
    with pytest.raises(AssertionError, match="exported again"):
        build(context, cache_dir=str(tmp_path))


def test_a_damaged_graph_is_not_loaded(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context("bert")
    good = Path(build(context).details["graph"])
    copy = shutil.copytree(good, tmp_path / good.name)
    (copy / "model.onnx.data").write_bytes((copy / "model.onnx.data").read_bytes()[:-8])
    forbid_exports(monkeypatch)
    with pytest.raises(AssertionError, match="exported again"):
        build(context, cache_dir=str(tmp_path))


def test_int8_is_made_of_the_float32_graph(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context("bert")
    whole = build(context)
    forbid_exports(monkeypatch)
    graphs = {build(context, precision=name).details["graph"] for name in ("float32", "int8", "int8_blocks")}
    assert whole.details["graph"] in graphs
    assert len(graphs) == 3


def test_a_graph_in_the_checkpoint_is_never_opened(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context("bert")
    graph = build(context).details["graph"]
    folder = shutil.copytree(context.checkpoint.path, tmp_path / "model")
    (folder / "onnx").mkdir()
    for place in (folder / "model.onnx", folder / "onnx" / "model.onnx"):
        place.write_bytes(b"not a graph")
    forbid_exports(monkeypatch)
    assert build(replace(context, checkpoint=replace(context.checkpoint, path=folder))).details["graph"] == graph


def test_a_checkpoint_without_the_head_is_refused_as_hf_refuses_it(make_context: MakeContext, tmp_path: Path) -> None:
    context = replace(make_context("bert"), head="token-classification")
    with pytest.raises(CheckpointError, match=r"has no token-classification head.*task=text-classification"):
        build(context, cache_dir=str(tmp_path))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_head_that_writes_is_refused(make_context: MakeContext) -> None:
    with pytest.raises(ConfigError, match="use model=generate"):
        build(replace(make_context("bert"), head="causal-lm"))


@pytest.mark.parametrize(
    ("device", "kind", "message"),
    [
        (Device("cuda:0"), DeviceError, "pip install onnxruntime-gpu"),
        (Device("mps"), DeviceError, "does not run on mps"),
        (Device("cpu", "bfloat16"), ConfigError, r"device\.dtype: model=onnxruntime has no bfloat16"),
    ],
)
def test_a_device_it_does_not_run_on_is_refused(
    device: Device, kind: type[Exception], message: str, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(kind, match=message):
        build(replace(make_context("bert"), device=device))


def test_a_missing_package_is_named_with_what_to_run(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import PackageNotFoundError, version

    def without(name: str) -> str:
        if name in ("onnxscript", "onnxruntime", "onnxruntime-gpu"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("pk_onnxruntime.needs.version", without)
    with pytest.raises(ConfigError, match="needs onnxruntime, onnxscript, which are not installed") as caught:
        build(make_context("bert"))
    assert "run: pip install onnxruntime onnxscript" in str(caught.value)


def test_token_types_that_do_not_come_are_told(make_context: MakeContext) -> None:
    """The tokenizer gave them when the graph was made; without them the answer would be another one."""
    stage = build(make_context("bert"))
    batch = collate([Encoding([5, 6, 7])], PaddingPolicy("longest", "right", 0), "cpu")
    with pytest.raises(ValueError, match="token_type_ids"):
        stage.forward(batch)


def registry() -> Registry:
    found = Registry()
    register_builtin(found)
    pk_onnxruntime.register(found)
    return found


def test_the_preset_composes() -> None:
    config = compose(["model=onnxruntime_int8", "model.cache_dir=/x"], registry=registry())
    assert config.model.options == OnnxRuntimeConfig(precision="int8", cache_dir="/x")


def test_a_mistyped_precision_is_told() -> None:
    with pytest.raises(ConfigError, match="allowed: float32, int8, int8_blocks"):
        compose(["model=onnxruntime", "model.precision=int4"], registry=registry())


PROGRAM = """
import sys
import pipeline_kit as pk
pipe = pk.load(f"checkpoint.path={sys.argv[1]}", "model=onnxruntime", *sys.argv[2:], plugins=["pk_onnxruntime"])
print(round(pipe("good")["score"], 4), *({"onnx", "onnxscript", "transformers"} & set(sys.modules)))
"""


def start(folder: Path, cache: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), *overrides],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_export_then_two_processes_at_once_then_a_warm_start(tmp_path: Path) -> None:
    folder, cache = tiny_checkpoint(tmp_path / "model", "distilbert"), tmp_path / "cache"
    graphs = cache / "pipeline-kit" / "onnx"
    with start(folder, cache) as killed:
        assert killed.stderr is not None
        assert "exporting" in killed.stderr.readline()
        killed.kill()
        killed.wait()
    assert not list(graphs.glob("*/entry.json"))

    with start(folder, cache) as first, start(folder, cache) as second:
        outs = [process.communicate() for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outs
    [score] = {out.split()[0] for out, _ in outs}
    told = "".join(err for _, err in outs).splitlines()
    assert len(told) == 1, "one of them exports; neither says anything else"
    assert told[0].startswith("exporting ")
    assert all(out.count("\n") == 1 for out, _ in outs), "the exporter prints to stdout"
    [sealed] = graphs.glob("*/entry.json")
    assert {path for path in graphs.iterdir() if path.suffix != ".lock"} == {sealed.parent}

    with start(folder, cache, "tokenizer=tokenizers_json") as warm:
        out, err = warm.communicate()
    assert (out, err) == (f"{score}\n", ""), "a warm start needs neither transformers nor onnx"
