"""A pipeline as an object of Python: threads, pickles and copies, close, repr, embed, options of a call."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from harness import checkpoint, pipeline_of

import pipeline_kit as pk
from pipeline_kit.contract.stages import Model, Postprocessor
from pipeline_kit.contract.types import Device, ModelOutput, Result, Side, TokenBatch
from pipeline_kit.errors import StageError, UsageError
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.testing import WordTokenizer, WordTokenizerConfig

PATIENCE = 30.0  # seconds after which a thread counts as blocked for ever
A_WHILE = 0.2  # seconds in which a thread that is not kept out would come in
TEXTS = [" ".join(["word"] * (1 + (7 * i) % 23)) + f" {i}" for i in range(100)]


class Sums(Model):
    safe_padding_sides: frozenset[Side] = frozenset({"right"})

    def forward(self, batch: TokenBatch) -> ModelOutput:
        return ModelOutput({"sum": (batch.input_ids * batch.attention_mask).float().sum(1)})


class Echo(Postprocessor):
    def __call__(self, examples: Sequence[Any], encodings: Any, outputs: Any) -> list[Result]:
        rows = zip(examples, outputs, strict=True)
        return [{"text": str(text), "embedding": [float(arrays["sum"]), 1.0]} for text, [arrays] in rows]


def make(
    tokenizer: Any = None, model: Any = None, postprocessor: Any = None, batching: BatchingPolicy | None = None
) -> Pipeline:
    return Pipeline(
        tokenizer or WordTokenizer(WordTokenizerConfig(max_length=500)),
        model or Sums(),
        postprocessor or Echo(),
        PaddingPolicy("longest"),
        batching or BatchingPolicy(max_tokens=64, window=16),
        Device(),
        {"task": "echo"},
    )


class Door:
    """A place where one thread at a time may be: the first to come stays for a while, to see if another one comes."""

    def __init__(self) -> None:
        self.inside = 0
        self.visits = 0
        self.met = threading.Event()

    def enter(self) -> None:
        self.inside += 1
        self.visits += 1
        if self.inside > 1:
            self.met.set()
        elif self.visits == 1:
            self.met.wait(A_WHILE)
        self.inside -= 1


def behind(kind: Any, method: str, door: Door) -> Any:
    """A stage that goes through `door` whenever `method` is called."""

    def call(self: Any, *given: Any) -> Any:
        door.enter()
        return getattr(kind, method)(self, *given)

    return type(kind.__name__, (kind,), {method: call})


@pytest.mark.parametrize("method", ["encode", "forward", "prepare", "reduce", "__call__"])
def test_two_threads_are_never_in_one_stage(method: str) -> None:
    door = Door()
    pipe = make(
        behind(WordTokenizer, method, door)(WordTokenizerConfig(max_length=500)) if method == "encode" else None,
        behind(Sums, method, door)() if method == "forward" else None,
        behind(Echo, method, door)() if method in ("prepare", "reduce", "__call__") else None,
    )
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda start: pipe(TEXTS[start::4]), range(4)))
    assert found == [make()(TEXTS[start::4]) for start in range(4)]
    assert door.visits >= 4
    assert not door.met.is_set()


def test_copies_that_share_stages_take_turns_too() -> None:
    door = Door()
    pipe = make(model=behind(Sums, "forward", door)())
    pipes = [pipe, replace(pipe, batching=BatchingPolicy(window=3))]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda pipe: pipe(TEXTS), pipes)) == [make()(TEXTS)] * 2
    assert not door.met.is_set()


def test_threads_of_a_real_pipeline_return_what_one_returns() -> None:
    pipe = pk.load("batching.window=16")
    alone = [pipe(TEXTS[start::3]) for start in range(3)]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(lambda start: pipe(TEXTS[start % 3 :: 3]), range(6))) == alone * 2
        explained = threads.submit(pipe.explain, TEXTS[:2])
        assert pipe(TEXTS[1::3]) == alone[1]
        assert [row.result for row in explained.result(PATIENCE).rows] == pipe(TEXTS[:2])


def in_another_thread(call: Any, *given: Any) -> Any:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call, *given).result(PATIENCE)


def test_a_stream_that_is_half_read_keeps_nobody_waiting() -> None:
    pipe = make()
    stream = pipe.stream(iter(TEXTS))
    first = [next(stream) for _ in range(20)]
    assert in_another_thread(pipe, TEXTS) == pipe(TEXTS) == make()(TEXTS)
    assert [*first, *stream] == make()(TEXTS)


def test_whatever_a_pipeline_calls_may_call_the_pipeline() -> None:
    """An observer, and the generator that yields the inputs; on the same thread and on another."""
    pipe, inner, seen = make(), make()("inner"), []

    def observe(stage: str, given: Any, made: Any) -> None:
        pipe.observer = None  # the calls in here are not observed
        seen.append((stage, pipe("inner") == in_another_thread(pipe, "inner") == inner))
        pipe.observer = observe

    def lines() -> Iterator[str]:
        for text in TEXTS:
            assert pipe("inner") == in_another_thread(pipe, "inner") == inner
            yield text

    pipe.observer = observe
    assert pipe(TEXTS[:3]) == make()(TEXTS[:3])
    assert seen == [(stage, True) for stage in ("tokenizer", "padding", "model", "reduce", "postprocessor")]
    pipe.observer = None
    assert list(pipe(lines())) == make()(TEXTS)


def test_the_model_rests_while_nobody_asks_for_the_next_piece_of_a_text() -> None:
    pipe = pipeline_of("text-generation", checkpoint("gpt2", head="causal-lm"))
    whole, other = pipe("one two")["text"], pipe("three")["text"]
    one, two = pipe.stream_text("one two"), pipe.stream_text("three")
    pieces, others = [next(one)], [next(two)]
    moved = threading.Event()
    network: Any = pipe.model
    hook = network._network.register_forward_hook(lambda *given: moved.set())
    assert not moved.wait(A_WHILE)
    hook.remove()
    assert in_another_thread(pipe, "one two")["text"] == whole
    for text in one:
        pieces.append(text)
        others += [next(two, "")]
    assert "".join(pieces) == whole
    assert "".join([*others, *two]) == other


KEYWORD = """
from dataclasses import dataclass
from pipeline_kit import Postprocessor, option

@dataclass
class Config:
    word: str = option("x", "a word")
    api_key: str = option("", "a key")

class Keyword(Postprocessor):
    def __init__(self, config, context):
        self.word = config.word

    def __call__(self, examples, encodings, outputs):
        return [{"found": self.word in example} for example in examples]

def register(registry):
    registry.postprocessor("keyword", f"{__name__}:Keyword", Config, summary="a word")
"""


def test_a_pipeline_is_pickled_and_copied_as_its_config(tmp_path: Path) -> None:
    (tmp_path / "keyword_stage.py").write_text(KEYWORD)
    plugins = [str(tmp_path / "keyword_stage.py")]
    pipe = pk.load("postprocessor=keyword", "postprocessor.word=love", "tokenizer.max_length=9", plugins=plugins)
    data = pickle.dumps(pipe)
    assert len(data) < 10_000, "no weights"
    for other in (pickle.loads(data), copy.deepcopy(pipe), copy.copy(pipe)):
        assert other.config == pipe.config
        assert other.description["options"] == pipe.description["options"]  # what is measured at load may differ
        assert (other.model is pipe.model, other.locks is pipe.locks) == (False, False)
        assert other(["I love it", "no"]) == pipe(["I love it", "no"]) == [{"found": True}, {"found": False}]
    assert pickle.loads(pickle.dumps(other)).config == pipe.config
    secret = pk.load("postprocessor=keyword", "postprocessor.api_key=hunter22", plugins=plugins)
    assert secret.config["postprocessor"]["api_key"] == "(hidden)"
    for refused in (secret, make()):
        with pytest.raises(UsageError, match=r"secret, which a pickle would show|put together without it"):
            pickle.dumps(refused)


def test_a_closed_pipeline_says_so_and_has_let_go_of_its_model() -> None:
    closed: list[str] = []

    class Closing(Sums):
        def close(self) -> None:
            closed.append("model")

    with make(model=Closing()) as pipe:
        stream = pipe.stream(iter(TEXTS))
        next(stream)
    assert closed == ["model"]
    pipe.close()
    assert closed == ["model"]
    for call in (
        lambda: pipe("a"),
        lambda: pipe(["a"]),
        lambda: list(stream),
        lambda: pipe.encode(["a"]),
        lambda: pipe.model,
    ):
        with pytest.raises(UsageError, match="this pipeline is closed; load it again"):
            call()
    assert "closed" in repr(pipe)
    assert not hasattr(pipe, "_ipython_display_")
    with pk.load() as loaded:
        assert loaded("a", top_k=None)["labels"]
        stages: list[Any] = [weakref.ref(loaded.model), weakref.ref(loaded.tokenizer)]
    gc.collect()
    assert [stage() for stage in stages] == [None, None]


def test_what_a_pipeline_says_of_itself() -> None:
    pipe = pk.load()
    assert (pipe.task, pipe.labels) == ("text-classification", ("NEGATIVE", "POSITIVE"))
    assert pipe.config["tokenizer"]["name"] == "hf"
    assert repr(pipe) == (
        f"<Pipeline task text-classification; checkpoint {pipe.description['checkpoint']['name']}; "
        "stages hf > hf > classification; device cpu float32; labels NEGATIVE, POSITIVE>"
    )
    named = replace(pipe, description={**pipe.description, "checkpoint": {"name": "./<script>alert(1)</script>&"}})
    shown = named._repr_html_()
    assert "<td>./&lt;script&gt;alert(1)&lt;/script&gt;&amp;</td>" in shown
    assert "<td>NEGATIVE, POSITIVE</td>" in shown
    many = replace(pipe, recipe=replace(pipe.recipe, labels=tuple("abcdefghijk")))
    assert "labels a, b, c, d, e, f, g, h and 3 more>" in repr(many)
    assert pk.load("task=sentence-embedding").labels == (), "that task does not use the head"


def test_embed_returns_the_matrix_of_what_a_call_returns() -> None:
    pipe = pipeline_of("sentence-embedding", checkpoint("bert"))
    matrix = pipe.embed(TEXTS)
    assert (matrix.dtype, matrix.shape) == (np.dtype(np.float32), (100, 32))
    assert matrix.tolist() == [result["embedding"] for result in pipe(TEXTS)]
    matrix[0] = 0  # it is the caller's own
    assert pipe.embed("a").tolist() == pipe.embed(["a"]).tolist() == [pipe("a")["embedding"]]
    assert pipe.embed([]).shape == pipe.embed(iter([])).shape == (0, 32)
    frame = pd.DataFrame({"review": [None, "a", "b", None]})
    spread = pipe.embed(frame, fields={"text": "review"}, missing="skip")
    assert np.isnan(spread).all(axis=1).tolist() == [True, False, False, True]
    assert spread[1:3].tolist() == pipe.embed(iter(["a", "b"])).tolist()
    with pytest.raises(pk.RowError, match="row 1"):
        pipe.embed(["a", None])
    with pytest.raises(UsageError, match="task=text-classification has no embedding, but label, score; use task=sent"):
        pk.load().embed(TEXTS)


def test_embed_keeps_no_more_than_a_window_of_results() -> None:
    alive = most = 0

    class Counted(dict[str, Any]):
        def __init__(self, **values: Any) -> None:
            nonlocal alive, most
            super().__init__(**values)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    class Counting(Echo):
        def __call__(self, *given: Any) -> list[Result]:
            return [Counted(**result) for result in super().__call__(*given)]

    assert make(postprocessor=Counting()).embed(TEXTS * 10).shape == (1000, 2)
    assert most <= 3 * 16

    class Ragged(Echo):
        def __call__(self, *given: Any) -> list[Result]:
            return [{"embedding": [0.0] * len(result["text"])} for result in super().__call__(*given)]

    with pytest.raises(StageError, match="the embedding of row 1 has 2 numbers, not 1"):
        make(postprocessor=Ragged()).embed(["a", "bb"])


def test_options_of_a_call_go_to_the_adapter() -> None:
    seen: list[Any] = []

    def adapter(pipe: Pipeline, options: Any) -> Pipeline:
        seen.append(dict(options))
        return replace(pipe, batching=BatchingPolicy(False, None, 1, 100))

    pipe = replace(make(), adapter=adapter)
    assert pipe("a", top_k=2) == pipe("a")
    assert pipe(["a"], top_k=3) == pipe(["a"])
    assert pipe.embed(["a"], top_k=4).shape == (1, 2)
    assert pipe.map(pd.DataFrame({"text": ["a"]}), prefix="x_", top_k=5)["x_embedding"].size == 1
    assert seen == [{"top_k": 2}, {"top_k": 3}, {"top_k": 4}, {"top_k": 5}]
    with pytest.raises(UsageError, match="'top_k' cannot be set in a call of this pipeline"):
        make()("a", top_k=2)


def test_progress_is_shown_on_stderr_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    assert make()(TEXTS, progress=True) == make()(TEXTS)
    assert list(make()(iter(TEXTS), progress=True)) == make()(TEXTS)
    found = capsys.readouterr()
    assert (found.out, "rows" in found.err) == ("", True)
