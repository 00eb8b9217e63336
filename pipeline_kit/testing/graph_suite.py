"""The suite for models that run exported graphs: when they export, what they refuse, what they leave alone.

It is for pytest, with two fixtures of the plugin: ``make_context``, a
:class:`~pipeline_kit.testing.graph_suite.GraphContexts`, and one that sets ``XDG_CACHE_HOME`` for every test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline_kit.builtin.models.hf.heads import HEADS
from pipeline_kit.builtin.models.hf.stage import HfModel
from pipeline_kit.builtin.models.options import HfModelConfig
from pipeline_kit.contract.stages import Model, StageContext
from pipeline_kit.contract.types import Encoding, Example
from pipeline_kit.errors import CheckpointError, ConfigError
from pipeline_kit.runtime.padding import PaddingPolicy, collate, split_rows
from pipeline_kit.testing.checkpoints import ARCHITECTURES, tiny_checkpoint
from pipeline_kit.testing.stages import checkpoint_context

_PROGRAM = """
import json, sys
import pipeline_kit as pk
path, plugin, absent, *overrides = sys.argv[1:]
pipe = pk.load(f"checkpoint.path={path}", *overrides, plugins=[plugin])
print(round(pipe("good")["score"], 4), *sorted(set(json.loads(absent)) & set(sys.modules)))
"""


class GraphModelSuite:
    """Checks of a plugin's model, whose ``runtime_info`` name the ``graph``'s folder.

    :cvar stage: the name it is registered under.
    :cvar plugin: the module with ``register``.
    :cvar model: its class.
    :cvar config: its options: ``cache_dir`` and ``precision`` among them.
    :cvar graph: the graph's file, and that of its weights.
    :cvar folder: the cache's folder below ``pipeline-kit``.
    :cvar packages: what it cannot do without; one of them missing is told.
    :cvar derived: precisions with a graph of their own that is made of the one in float32.
    :cvar absent: modules that a warm start must not load.
    """

    stage: ClassVar[str]
    plugin: ClassVar[str]
    model: ClassVar[type[Any]]
    config: ClassVar[type[Any]]
    graph: ClassVar[tuple[str, str]]
    folder: ClassVar[str]
    packages: ClassVar[Sequence[str]]
    derived: ClassVar[Sequence[str]]
    absent: ClassVar[Sequence[str]] = ("transformers",)

    def build(self, context: StageContext, **options: Any) -> Model:
        """Build the model."""
        built = self.model(self.config(**options), context)
        assert isinstance(built, Model)
        return built

    @pytest.fixture
    def no_exports(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Return a function after which an export fails."""

        def fails(*_: Any) -> None:
            raise AssertionError("exported again")

        return lambda: monkeypatch.setattr("pipeline_kit.graphs.graphs.export", fails)

    def test_an_export_is_used_again(self, make_context: GraphContexts, no_exports: Any) -> None:
        """The second model exports nothing."""
        first = self.build(make_context("bert"))
        no_exports()
        assert self.build(make_context("bert")).runtime_info == first.runtime_info

    def test_each_thing_it_depends_on_has_a_graph_of_its_own(
        self, make_context: GraphContexts, tmp_path: Path, no_exports: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights, head, whether there are token types, and every version."""
        context = make_context("bert")
        graph = Path(self.build(context).runtime_info["graph"])
        shutil.copytree(graph, tmp_path / graph.name)
        no_exports()
        self.build(context, cache_dir=str(tmp_path))
        for other in (make_context("bert", seed=5), replace(context, head="base"), replace(context, tokenizer=None)):
            with pytest.raises(AssertionError, match="exported again"):
                self.build(other, cache_dir=str(tmp_path))
        for package in self.packages:

            def newer(name: str, changed: str = package) -> str:
                return "99" if name == changed else version(name)

            monkeypatch.setattr("pipeline_kit.graphs.cache.version", newer)
            with pytest.raises(AssertionError, match="exported again"):
                self.build(context, cache_dir=str(tmp_path))

    @pytest.mark.parametrize("file", [0, 1])
    def test_a_damaged_graph_is_not_loaded(
        self, make_context: GraphContexts, tmp_path: Path, no_exports: Any, file: int
    ) -> None:
        """A file that is cut short is made anew."""
        context = make_context("bert")
        good = Path(self.build(context).runtime_info["graph"])
        path = shutil.copytree(good, tmp_path / good.name) / self.graph[file]
        path.write_bytes(path.read_bytes()[:-8])
        no_exports()
        with pytest.raises(AssertionError, match="exported again"):
            self.build(context, cache_dir=str(tmp_path))

    def test_others_are_made_of_the_float32_graph(self, make_context: GraphContexts, no_exports: Any) -> None:
        """Each precision has one graph, and the checkpoint is exported once."""
        context = make_context("bert")
        whole = self.build(context).runtime_info["graph"]
        no_exports()
        others = {self.build(context, precision=name).runtime_info["graph"] for name in self.derived}
        assert whole not in others
        assert len(others) == len(self.derived)

    def test_a_graph_in_the_checkpoint_is_never_opened(
        self, make_context: GraphContexts, tmp_path: Path, no_exports: Any
    ) -> None:
        """Files of the runtime's own form beside the weights change nothing."""
        context = make_context("bert")
        graph = self.build(context).runtime_info["graph"]
        folder = shutil.copytree(context.checkpoint.path, tmp_path / "model")
        for place in (folder, folder / self.stage, folder / self.folder):
            place.mkdir(exist_ok=True)
            for file in (*self.graph, *(f"{self.stage}_{name}" for name in self.graph)):
                (place / file).write_bytes(b"not a graph")
        no_exports()
        moved = replace(context, checkpoint=replace(context.checkpoint, path=folder))
        assert self.build(moved).runtime_info["graph"] == graph

    def test_a_checkpoint_without_the_head_is_refused_as_hf_refuses_it(
        self, make_context: GraphContexts, tmp_path: Path
    ) -> None:
        """The message names the task to use, and nothing is left in the cache."""
        context = replace(make_context("bert"), head="token-classification")
        with pytest.raises(CheckpointError, match=r"has no token-classification head.*task=text-classification"):
            self.build(context, cache_dir=str(tmp_path))
        assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]

    def test_a_head_that_writes_is_refused(self, make_context: GraphContexts) -> None:
        """It is ``model=generate``'s."""
        with pytest.raises(ConfigError, match="use model=generate"):
            self.build(replace(make_context("bert"), head="causal-lm"))

    def test_a_missing_package_is_named_with_what_to_run(
        self, make_context: GraphContexts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All that are missing, in one line for pip."""
        gone = self.packages[:2]

        def without(name: str) -> str:
            if name.startswith(tuple(gone)):
                raise PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr("pipeline_kit.graphs.cache.version", without)
        with pytest.raises(ConfigError, match=f"model={self.stage}: needs {', '.join(gone)}, which are not") as caught:
            self.build(make_context("bert"))
        assert f"run: pip install {' '.join(gone)}" in str(caught.value)

    def test_token_types_that_do_not_come_are_told(self, make_context: GraphContexts) -> None:
        """The tokenizer returned them when the graph was made; without them the answer would be another one."""
        stage = self.build(make_context("bert"))
        batch = collate([Encoding([5, 6, 7])], PaddingPolicy("longest", "right", 0), "cpu")
        with pytest.raises(ValueError, match="token_type_ids"):
            stage.forward(batch)

    def test_a_killed_export_then_two_processes_at_once_then_a_warm_start(self, tmp_path: Path) -> None:
        """A killed one leaves no graph; of two at once one exports; a warm start is light and quiet."""
        checkpoint, cache = tiny_checkpoint(tmp_path / "model", "distilbert"), tmp_path / "cache"
        graphs = cache / "pipeline-kit" / self.folder

        def start(*overrides: str) -> Any:
            given = (str(checkpoint), self.plugin, json.dumps(self.absent), f"model={self.stage}", *overrides)
            return start_python(_PROGRAM, *given, cache=cache)

        with start() as killed:
            assert "exporting" in killed.stderr.readline()
            killed.kill()
            killed.wait()
        assert not list(graphs.glob("*/entry.json"))

        with start() as first, start() as second:
            outs = [process.communicate() for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [0, 0], outs
        [score] = {out.split()[0] for out, _ in outs}
        told = "".join(err for _, err in outs).splitlines()
        assert len(told) == 1, f"one of them exports; neither says anything else: {told}"
        assert told[0].startswith("exporting ")
        assert all(out.count("\n") == 1 for out, _ in outs), "the exporter prints to stdout"
        [sealed] = graphs.glob("*/entry.json")
        assert {path for path in graphs.iterdir() if path.suffix != ".lock"} == {sealed.parent}

        with start("tokenizer=tokenizers_json") as warm:
            out, err = warm.communicate()
        assert (out, err) == (f"{score}\n", ""), f"a warm start loads none of {self.absent}"


GRAPH_HEADS = ("sequence-classification", *(head for head in HEADS if head != "sequence-classification"))
"""The heads of ``model=hf``, the most used one first."""

GRAPH_CASES: tuple[tuple[str, str], ...] = (
    *((name, GRAPH_HEADS[0]) for name in ("albert", "bart", "bert", "deberta-v2", "distilbert")),
    *((name, GRAPH_HEADS[0]) for name in ("gpt2", "llama", "modernbert", "t5", "xlnet")),
    ("bert", "base"),
    ("t5", "base"),
    ("roberta", "token-classification"),
    ("roberta", "question-answering"),
    ("modernbert", "masked-lm"),
    ("bert", "multiple-choice"),
)
"""Architectures and heads that differ in what their graphs take and give."""

GRAPH_TEXTS: tuple[Example, ...] = (
    "good",
    "bad and very dull day again",
    "ok",
    {"text": "good one", "text_pair": "bad"},
    "a b c d e f g h i j k l m",
    "good " * 90,
)
"""Texts of many lengths, one of them cut, and a pair."""

_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers")


class GraphContexts:
    """Makes contexts for tiny checkpoints of one layer, below a folder; the same arguments make the same one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[Any, StageContext] = {}

    def __call__(self, architecture: str, head: str = GRAPH_HEADS[0], **options: Any) -> StageContext:
        """Return the context, with a tokenizer.

        :param options: for :func:`~pipeline_kit.testing.tiny_checkpoint`.
        :raises ValueError: if transformers has no such head of this architecture.
        """
        key = (architecture, head, *options.items())
        if key not in self._made:
            one_layer = {name: 1 for name in _LAYERS if name in ARCHITECTURES[architecture].sizes}
            folder = Path(mkdtemp(dir=self._folder))
            tiny_checkpoint(folder, architecture, head=head, **{**one_layer, **options})
            self._made[key] = checkpoint_context(folder, head=head)
        return self._made[key]


def assert_answers_of_hf(
    stage: Model, context: StageContext, tolerance: float, texts: Sequence[Example] = GRAPH_TEXTS
) -> None:
    """Compare `stage` with ``model=hf``: the texts together, padded on each side that it supports, and each alone."""
    theirs = HfModel(HfModelConfig(), context)
    tokenizer = context.tokenizer
    assert tokenizer is not None
    assert stage.safe_padding_sides == theirs.safe_padding_sides
    encodings = tokenizer.encode(texts)
    together = [(side, encodings) for side in sorted(theirs.safe_padding_sides)]
    for side, some in [*together, *(("right", [encoding]) for encoding in encodings)]:
        batch = collate(some, PaddingPolicy("longest", side, tokenizer.pad_token_id or 0), "cpu")
        found, expected = stage.forward(batch), theirs.forward(batch)
        assert set(found.tensors) == set(expected.tensors)
        assert found.per_token == expected.per_token
        for mine, other in zip(split_rows(found, batch), split_rows(expected, batch), strict=True):
            for name, value in other.items():
                np.testing.assert_allclose(mine[name], value, rtol=0, atol=tolerance)


def start_python(program: str, *arguments: str, cache: Path) -> subprocess.Popen[str]:
    """Start a process that sees the modules of this one and keeps its graphs below `cache`."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
