"""The suite for exported graphs can fail: a runtime without an exporter, sound at first, then with one fault each."""

from __future__ import annotations

import inspect
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from pipeline_kit.checkpoint.resolve import fingerprint
from pipeline_kit.errors import CheckpointError
from pipeline_kit.graphs import Graph, GraphModel, graph_inputs, graphs
from pipeline_kit.graphs.cache import name_of
from pipeline_kit.testing import GraphContexts, GraphModelSuite


class PickledGraph(Graph):
    """The network itself."""

    def __init__(self, path: Path) -> None:
        self.network = torch.load(path, weights_only=False)

    def __call__(self, given: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            found = self.network(**given)
        return {name: getattr(found, name) for name in names}


@dataclass
class PickledConfig:
    head: Any = None
    precision: str = "float32"
    cache_dir: str | None = None


class PickledModel(GraphModel):
    stage = "pickled"
    format = "pickle"
    cache = "pickled"
    recipe = 1
    packages = ("torch", "transformers")
    tolerances: ClassVar[Mapping[str, float]] = {"float32": 1e-5, "half": 0.1}

    def check(self, device: Any, precision: Any) -> None:
        pass

    def derived_from(self, precision: Any) -> Mapping[str, Any] | None:
        return None if precision == "float32" else {"precision": precision}

    def derive(self, checkpoint: Any, source: Path, precision: Any, folder: Path) -> dict[str, Any]:
        for file in ("graph.bin", "graph.data"):
            shutil.copy(source / file, folder)
        return {}

    def trace(self, network: Any, inputs: Any, shapes: Any, outputs: Any) -> Any:
        return network

    def save(self, program: Any, folder: Path) -> None:
        torch.save(program, folder / "graph.bin")
        (folder / "graph.data").write_text("made by hand")

    def load(self, folder: Path, device: Any, precision: Any, facts: Any) -> Graph:
        return PickledGraph(folder / "graph.bin")


class TestPickled(GraphModelSuite):
    stage, plugin, model, config = "pickled", __name__, PickledModel, PickledConfig
    graph, folder, packages, derived = ("graph.bin", "graph.data"), "pickled", PickledModel.packages, ("half",)
    test_a_killed_export_then_two_processes_at_once_then_a_warm_start = None  # type: ignore[assignment] # slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))


@pytest.fixture(scope="module")
def make_context(tmp_path_factory: pytest.TempPathFactory) -> GraphContexts:
    return GraphContexts(tmp_path_factory.mktemp("models"))


@pytest.fixture
def no_exports(monkeypatch: pytest.MonkeyPatch) -> Any:
    def fails(*_: Any) -> None:
        raise AssertionError("exported again")

    return lambda: monkeypatch.setattr("pipeline_kit.graphs.graphs.export", fails)


CALLS = itertools.count()
Build = Callable[[Path], dict[str, Any]]


def kept(name: Callable[[Any], str]) -> Callable[[Path, Any, Build], tuple[Path, dict[str, Any]]]:
    """A cache that never looks at what it holds, with a folder for each name."""

    def cached(root: Path, key: Any, build: Build) -> tuple[Path, dict[str, Any]]:
        folder = root / f"careless-{name(key)}"
        if not (folder / "facts").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "facts").write_text(json.dumps(build(folder)))
        return folder, json.loads((folder / "facts").read_text())

    return cached


def looks_into_the_checkpoint(self: Any, folder: Path, device: Any, precision: Any, facts: Any) -> Graph:
    path = FOUND[0] / "graph.bin"
    return PickledGraph(path if path.exists() else folder / "graph.bin")


FOUND: list[Path] = []
FINGERPRINT, INIT = fingerprint, GraphModel.__init__


def remembers_the_checkpoint(self: Any, config: Any, context: Any) -> None:
    FOUND[:] = [context.checkpoint.path]
    PickledModel.load = looks_into_the_checkpoint  # type: ignore[method-assign]
    INIT(self, config, context)


def leaves_a_file(self: Any, config: Any, context: Any) -> None:
    (Path(config.cache_dir) / "part.tmp").touch()
    INIT(self, config, context)


def no_head(*_: Any) -> None:
    raise CheckpointError("cannot be exported")


def fills_in_types(batch: Any, head: str, takes: Any) -> dict[str, torch.Tensor]:
    batch.token_type_ids = torch.zeros_like(batch.input_ids)
    return graph_inputs(batch, head, takes)


G, M, OWN = "pipeline_kit.graphs.graphs", f"{__name__}.PickledModel", "each_thing_it_depends_on_has_a_graph_of_its_own"
DAMAGED, DERIVED = "a_damaged_graph_is_not_loaded", "others_are_made_of_the_float32_graph"
HEADLESS = "a_checkpoint_without_the_head_is_refused_as_hf_refuses_it"
FAULTS: list[tuple[str, Any, str]] = [
    (f"{G}.cached", kept(lambda key: str(next(CALLS))), "an_export_is_used_again"),
    (
        f"{M}.runtime_info",
        property(lambda self: {"graph": str(self._folder), "at": next(CALLS)}),
        "an_export_is_used_again",
    ),
    (f"{G}.cached", kept(lambda key: "one"), OWN),
    (f"{G}.cached", kept(lambda key: name_of({**key, "head": ""})), OWN),
    (f"{G}.cached", kept(lambda key: name_of({**key, "token_type_ids": ""})), OWN),
    (f"{G}.fingerprint", lambda checkpoint: {}, OWN),
    (f"{G}.fingerprint", lambda checkpoint: sorted(FINGERPRINT(checkpoint)), OWN),
    (f"{G}.required_versions", lambda *_: {}, OWN),
    (f"{G}.cached", kept(name_of), DAMAGED),
    (f"{M}.runtime_info", property(lambda self: {"precision": "float32"}), DAMAGED),
    (f"{M}.derived_from", lambda self, precision: None, DERIVED),
    (f"{M}.derived_from", lambda self, precision: {"precision": "float32"}, DERIVED),
    (f"{M}.derive", lambda self, *_: graphs.export(*_), DERIVED),
    (f"{M}.__init__", remembers_the_checkpoint, "a_graph_in_the_checkpoint_is_never_opened"),
    (f"{G}.load_network", no_head, HEADLESS),
    (f"{M}.__init__", leaves_a_file, HEADLESS),
    (f"{G}.check_head_name", lambda head: None, "a_head_that_writes_is_refused"),
    (f"{G}.required_versions", lambda *_: {}, "a_missing_package_is_named_with_what_to_run"),
    (f"{G}.graph_inputs", fills_in_types, "token_types_that_do_not_come_are_told"),
]


@pytest.mark.parametrize(("place", "fault", "check"), FAULTS)
def test_a_broken_graph_model_fails_its_check(
    place: str, fault: Any, check: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(PickledModel, "load", PickledModel.load)  # put back whatever a fault does to it
    monkeypatch.setattr(place, fault)
    method = getattr(TestPickled(), f"test_{check}")
    names = inspect.signature(method).parameters
    given = {name: 0 if name == "file" else request.getfixturevalue(name) for name in names}
    with pytest.raises((Exception, pytest.fail.Exception)):
        method(**given)
