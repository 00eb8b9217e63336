"""What there is to try for a config, and the preset that a config becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline_kit import option
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.types import Device
from pipeline_kit.errors import OutputError, PipelineKitError, UsageError
from pipeline_kit.tune import report, space
from pipeline_kit.tune.report import check_target, preset_text, write_preset
from pipeline_kit.tune.space import Candidate, SearchSpace, changes, reason_of


@dataclass
class TwinConfig:
    """Options of a plugin's model."""

    head: Literal["base", "sequence-classification"] | None = option(None, "the head")
    precision: Literal["float32", "int8"] = option("float32", "the precision")
    cache_dir: str | None = option(None, "a folder")
    depth: int = option(2, "anything else")


@dataclass
class PlainConfig:
    """Options of a model with nothing to choose from."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The built-in stages and two models of plugins, on a CPU that multiplies bfloat16."""
    monkeypatch.setattr(space, "emulated", lambda dtype: False)
    found = load_registry()
    found.source = "some-plugin 1.0"
    found.model("twin", "nowhere:Twin", TwinConfig)
    found.model("plain", "nowhere:Plain", PlainConfig)
    return found


def around(registry: Registry, *overrides: str, device: Device | None = None, **more: Any) -> SearchSpace:
    own = compose(overrides, registry=registry)
    return SearchSpace(own, device or Device("cpu", "float32", 2), registry, cpus=4, **more)


def tried(found: SearchSpace) -> dict[str, Candidate]:
    return {candidate.engine: candidate for candidate in found.engines()}


def node(candidate: Candidate, group: str = "model") -> dict[str, Any]:
    assert candidate.config is not None, candidate.problem
    return dict(candidate.config.data[group])


def test_engines_are_the_built_in_ones_and_those_of_plugins(registry: Registry) -> None:
    found = around(registry)
    engines = tried(found)
    assert {
        "model=hf device.dtype=bfloat16",
        "model=hf model.quantization=int8",
        "model=hf model.quantization=int8_per_token",
        "model=plain",
        "model=twin model.precision=float32",
        "model=twin model.precision=int8",
    } == set(engines)
    assert node(engines["model=hf device.dtype=bfloat16"], "device")["dtype"] == "bfloat16"
    assert node(engines["model=twin model.precision=int8"])["precision"] == "int8"
    assert found.reference.key == found.own.key
    assert "model=hf model.compile=true" in tried(around(registry, compiled=True))


def test_an_option_that_is_unknown_is_the_reason_of_a_row(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SearchSpace, "_built_ins", lambda self: iter([self._built_in({"magic": 7}), self._built_in({})])
    )
    found = tried(around(registry))
    assert found["model=hf model.magic=7"].config is None
    assert found["model=hf model.magic=7"].problem == "model.magic: unknown option."
    assert "model=hf" not in found  # that is the user's own config


def test_bfloat16_is_left_out_where_it_is_emulated(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "emulated", lambda dtype: True)
    found = tried(around(registry))["model=hf device.dtype=bfloat16"]
    assert found.config is None
    assert "does not multiply bfloat16 itself" in str(found.problem)


def test_the_reference_is_float32_with_plain_settings(registry: Registry) -> None:
    own = ("model.attn_implementation=eager", "model.head=base", "device.dtype=bfloat16")
    found = around(registry, *own, device=Device("cpu", "bfloat16", 2))
    assert node(found.reference, "device")["dtype"] == "float32"
    assert (node(found.reference)["head"], node(found.reference)["attn_implementation"]) == ("base", None)
    assert found.reference.key != found.own.key


def test_a_gpu_has_more_dtypes(registry: Registry) -> None:
    engines = tried(around(registry, device=Device("cuda:0", "bfloat16", 1)))
    assert {name for name in engines if "dtype" in name} == {  # plain bfloat16 is what 'auto' is there
        "model=hf device.dtype=float16",
    }
    assert node(engines["model=hf device.dtype=float16"], "device")["dtype"] == "float16"


def test_the_users_own_plugin_keeps_its_options(registry: Registry) -> None:
    own = ("model=twin", "model.depth=5", "model.cache_dir=graphs", "model.precision=int8", "model.head=base")
    found = around(registry, *own)
    engines = tried(found)
    assert "model=twin model.precision=int8" not in engines  # is the user's
    assert node(engines["model=twin model.precision=float32"]) == {
        "name": "twin",
        "precision": "float32",
        "depth": 5,
        "cache_dir": "graphs",
        "head": "base",
    }
    assert node(found.reference)["name"] == "hf"
    assert node(found.reference)["head"] == "base"


def test_models_that_lack_the_head_say_so_and_writers_stay_writers(registry: Registry) -> None:
    found = around(registry, "task=text-generation", "model.generation.max_new_tokens=7")
    engines = tried(found)
    assert engines["model=twin"].problem == "it has no head 'causal-lm', which the task needs"
    assert node(engines["model=generate device.dtype=bfloat16"])["generation"]["max_new_tokens"] == 7
    assert found.reference.key == found.own.key
    assert not any("quantization" in name for name in engines)


def test_presets_of_the_users_folders_are_tried(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "deep.yaml").write_text("defaults: [twin, _self_]\ndepth: 9\n")
    (tmp_path / "model" / "same.yaml").write_text("defaults: [twin, _self_]\nprecision: int8\n")
    (tmp_path / "model" / "wrong.yaml").write_text("defaults: [twin, _self_]\ndeph: 9\n")
    engines = tried(around(registry, config_dirs=[tmp_path]))
    assert node(engines["model=deep"])["depth"] == 9
    assert engines["model=wrong"].problem == "model.deph: unknown option."
    assert "model=same" not in engines  # as model=twin model.precision=int8


def test_budgets_and_threads_around_what_there_is(registry: Registry) -> None:
    found = around(registry, "batching=fixed", "batching.max_rows=32", "batching.window=64")
    budgets = [node(candidate, "batching") for candidate in found.budgets(found.own, None)]
    assert [one["max_tokens"] for one in budgets] == [256, 512, 1024, 2048, 4096]
    assert {(one["name"], one["max_rows"], one["window"]) for one in budgets} == {("token_budget", None, 64)}
    kept = around(registry, "batching.max_rows=32")
    assert [node(c, "batching")["max_rows"] for c in kept.budgets(kept.own, 1024)] == [32] * 4
    assert [node(c, "device")["threads"] for c in kept.threads(kept.own, 2)] == [1, 4]
    kept._cpus = 6
    assert [node(c, "device")["threads"] for c in kept.threads(kept.own, 3)] == [1, 2, 4, 6]
    on_gpu = around(registry, device=Device("cuda:0", "float32", 1))
    assert on_gpu.threads(on_gpu.own, 1) == []
    assert node(on_gpu.budgets(on_gpu.own, 16384)[0], "batching")["max_tokens"] == 4096


def test_changes_are_overrides(registry: Registry) -> None:
    own = compose(["model.attn_implementation=eager"], registry=registry)
    words = ["model=twin", "model.precision=int8", "model.cache_dir='a, b'", "batching=fixed", "device.threads=3"]
    words += ["postprocessor.thresholds={A: 0.5}", "input.carry=[text,'x y']"]
    other = compose(words, registry=registry)
    found = changes(own, other)
    assert {"model=twin", "model.precision=int8", "model.cache_dir='a, b'", "input.carry=[text,'x y']"} <= set(found)
    assert compose(found, registry=registry).data == other.data
    assert changes(own, own) == []


def test_a_reason_is_one_line() -> None:
    with pytest.raises(PipelineKitError) as error:
        compose(["model.x=1", "padding=nothing"])
    assert reason_of(error.value).count(";") == 1
    assert "\n" not in reason_of(RuntimeError("a\nb" * 500))
    assert len(reason_of(RuntimeError("a\nb" * 500))) <= 300


PRESETS = [
    (),
    ("task=sentence-embedding", "batching.max_tokens=512", "device.threads=1"),
    ("task=ner", "padding=max_length", "padding.max_length=32", "batching=fixed"),
    ("task=text-generation", "model.generation.stop_strings=['a b']", "batching.max_rows=null"),
    ("task=text2text", "task.src_lang=deu_Latn", "checkpoint.path='./a b, c'"),
    ("postprocessor=logits", "tokenizer=windows", "model=eager", "device=cpu"),
    ("task=zero-shot-classification", "postprocessor.labels=['1e-5','on','é: #']", "tokenizer.max_length=5"),
    ("checkpoint=tiny_static", "model=static", "postprocessor.thresholds={POSITIVE: 0.9}", "postprocessor.top_k=null"),
]


@pytest.mark.parametrize("overrides", PRESETS, ids=lambda words: words[0] if words else "as it comes")
def test_a_preset_composes_to_the_same_config(overrides: tuple[str, ...], tmp_path: Path) -> None:
    wanted = compose(overrides)
    text = preset_text(wanted, ["What: this", "a\nb: !!python/object"])
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert compose(config_dir=[tmp_path], config_name="mine").data == wanted.data
    assert text.startswith("# What: this\n# a\\nb: !!python/object\ndefaults:\n- config\n")
    if not overrides:
        assert compose(["device.threads=7"], config_dir=[tmp_path], config_name="mine").device.threads == 7


def test_a_preset_holds_only_what_differs() -> None:
    body = preset_text(compose(["tokenizer.max_length=5", "padding=longest", "task=text-classification"]), [])
    assert body == "defaults:\n- config\n- _self_\ntokenizer:\n  max_length: 5\n"


def test_a_config_that_a_preset_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_difference", lambda before, after: {})
    with pytest.raises(OutputError, match="'tokenizer' comes out as another one"):
        preset_text(compose(["tokenizer.max_length=5"]), [])


def test_where_a_preset_may_go(tmp_path: Path) -> None:
    check_target(tmp_path / "tuned.yaml", force=False)
    for name in ("tuned.yml", "tuned", "config.yaml"):
        with pytest.raises(UsageError, match="name it tuned"):
            check_target(tmp_path / name, force=True)
    with pytest.raises(OutputError, match="there is no folder"):
        check_target(tmp_path / "nowhere" / "tuned.yaml", force=True)
    (tmp_path / "padding").mkdir()
    for name in ("other.yaml", "padding/other.yaml"):  # beside it, but no part of this config
        (tmp_path / name).write_text("a: &x 1\n")
    check_target(tmp_path / "tuned.yaml", force=False)


def test_a_preset_never_overwrites_unasked(tmp_path: Path) -> None:
    path = tmp_path / "tuned.yaml"
    write_preset(path, "one\n", force=False)
    with pytest.raises(UsageError, match="--force"):
        check_target(path, force=False)
    with pytest.raises(UsageError, match="is there by now"):
        write_preset(path, "two\n", force=False)
    assert path.read_text() == "one\n"
    check_target(path, force=True)
    write_preset(path, "three\n", force=True)
    assert path.read_text() == "three\n"
    assert [item.name for item in tmp_path.iterdir()] == ["tuned.yaml"]
