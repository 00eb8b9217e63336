"""Several pipelines as one: the same results as by hand, in order, whatever fails or is left out."""

from __future__ import annotations

import itertools
import json
import random
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest
from echo_job import EchoModel, EchoPostprocessor, EchoTokenizer

from pipeline_kit import Pipeline, RowError, RunStats
from pipeline_kit.contract.types import Device, Encoding, Example
from pipeline_kit.errors import RowFailure, StageError, UsageError
from pipeline_kit.runtime import steps as module
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.runtime.pipeline import Recipe
from pipeline_kit.runtime.steps import Step, StepPipeline, sentences
from pipeline_kit.runtime.wiring import FieldPath, Wiring

TEXTS = [f"row {number}. {'More of it! ' * (number % 4)}" for number in range(40)]


def echo(window: int = 16, **parts: Any) -> Pipeline:
    """A pipeline whose label is its text, whose score is the sum of its bytes; ``~m`` fails in the model."""
    stages: dict[str, Any] = {"tokenizer": EchoTokenizer(), "model": EchoModel(), "postprocessor": EchoPostprocessor()}
    rules: dict[str, Any] = {"padding": PaddingPolicy("longest"), "batching": BatchingPolicy(True, 200, window=window)}
    return Pipeline(**{**stages, **rules, **parts}, device=Device(), description={"notes": ()})


def wiring(take: Mapping[str, str], when: Mapping[str, Any] | None = None, earlier: Sequence[str] = ()) -> Wiring:
    conditions = {FieldPath.parse(path): values for path, values in (when or {}).items()}
    return Wiring({name: FieldPath.parse(path) for name, path in take.items()}, conditions, frozenset(earlier))


def chain(pipelines: Mapping[str, tuple[Pipeline | None, Mapping[str, str], Mapping[str, Any] | None]]) -> StepPipeline:
    """Put steps together: for each its pipeline, its fields and its conditions."""
    steps: dict[str, Step] = {}
    for name, (pipeline, take, when) in pipelines.items():
        steps[name] = Step(wiring(take, when, tuple(steps)), pipeline)
    return StepPipeline.of(steps, Recipe(takes=("text",), gives=dict.fromkeys(steps)), description={"notes": ()})


def three(**parts: Any) -> StepPipeline:
    """A step on the text, one on what it returned where its score is odd, one on each sentence."""
    whole = {"take": {"text": "text"}}
    return chain(
        {
            "first": (echo(**parts), whole["take"], None),
            "again": (echo(8), {"text": "first.label"}, {"first.score": tuple(float(n) for n in range(1, 20_000, 2))}),
            "sentences": (None, {"text": "text"}, None),
            "each": (echo(5), {"text": "sentences.*.text"}, None),
        }
    )


def test_results_are_those_of_the_steps_by_hand() -> None:
    found = three()(TEXTS)
    first = echo()(TEXTS)
    assert [row["first"] for row in found] == first
    odd = [row["label"] for row in first if row["score"] % 2]
    assert 5 < len(odd) < 35
    assert [row["again"] for row in found if row["again"] is not None] == echo(8)(odd)
    assert [row["again"] is None for row in found] == [row["score"] % 2 == 0 for row in first]
    parts = [part["text"] for text in TEXTS for part in sentences(text)]
    assert list(itertools.chain(*(row["each"] for row in found))) == echo(5)(parts)
    assert [list(row) for row in found] == [["first", "again", "sentences", "each"]] * len(TEXTS)


def test_batches_of_a_list_and_of_a_stream_are_those_by_hand() -> None:
    def batches(pipeline: Pipeline, texts: Iterable[Example]) -> list[Any]:
        seen: list[Any] = []
        pipeline.observer = lambda stage, given, made: (
            seen.append(made.input_ids.tolist()) if stage == "padding" else None
        )
        assert len(list(pipeline.stream(texts))) == 400
        return seen

    texts = [text * (1 + number % 3) for number, text in enumerate(TEXTS * 10)]
    one = {"one": (echo(200), {"text": "text"}, None)}
    assert batches(chain(one), texts) == batches(echo(200), texts)
    assert batches(chain(one), iter(texts)) == batches(echo(200), iter(texts)) != batches(echo(200), texts)


def test_a_stream_is_read_only_as_far_as_windows_need() -> None:
    taken = 0

    def rows() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield f"row {taken}."

    stream = three().stream(rows())
    furthest = 0
    for row, _ in enumerate(itertools.islice(stream, 2_000)):
        furthest = max(furthest, taken - row)
    assert furthest < 400


def test_rows_that_no_step_runs_on_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 50)
    taken = 0

    def rows() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield "nothing" if taken % 500 else "something"

    never = chain(
        {"one": (echo(), {"text": "text"}, {"text": ("something",)}), "two": (echo(), {"text": "one.label"}, None)}
    )
    stream = never.stream(rows())
    for row, result in enumerate(itertools.islice(stream, 2_000), start=1):
        assert (result["two"] is None) == bool(row % 500)
        assert taken - row < 200


def test_a_failed_step_is_a_failed_row_with_its_name() -> None:
    texts = ["one", "two ~m", "three", "four ~t", "five ~p", "six"]
    stats = RunStats()
    found = list(three().results_or_failures(texts, stats))
    assert [outcome.stage if isinstance(outcome, RowFailure) else "" for outcome in found] == [
        "", "first.model", "", "first.tokenizer", "first.postprocessor", "",
    ]  # fmt: skip
    assert [outcome.index for outcome in found if isinstance(outcome, RowFailure)] == [1, 3, 4]
    assert (stats.rows, stats.failed) == (6, 3)
    with pytest.raises(RowError, match=r"row 1: first\.model: RuntimeError"):
        three()(texts)
    [outcome] = chain(
        {"all": (None, {"text": "text"}, None), "each": (echo(), {"text": "all.*.text"}, None)}
    ).results_or_failures(["Good. Bad ~m. Good."])
    assert isinstance(outcome, RowFailure)
    assert (outcome.stage, outcome.message) == ("each.model", "item 1: the model does not like this one")


def test_rows_that_cannot_be_wired_fail_alone() -> None:
    pipe = chain({"one": (echo(), {"text": "text.0.deep"}, None)})
    good = {"text": [{"deep": "here"}]}
    found = list(pipe.results_or_failures([good, {"text": []}, {"text": "plain"}, {"txt": 1}, 7, good]))  # type: ignore[list-item]
    assert found[0] == found[5] == {"one": echo()("here")}
    messages = [(o.stage, o.message) for o in found if isinstance(o, RowFailure)]
    assert messages[0] == ("one.take", "'text.0.deep': 'text' has no '0'")
    assert messages[1] == ("one.take", "'text.0.deep': 'text' has no '0'")
    assert messages[2][0] == messages[3][0] == "input"
    assert "the field 'text' is missing; found: txt" in messages[2][1]


@pytest.mark.parametrize(
    ("when", "runs"),
    [
        ({"one.label": ("a", "c")}, "a c"),
        ({"one.label": ("nobody",)}, ""),
        ({"one.nothing": ("a",)}, ""),
        ({"one.nothing": (None,)}, "a b c"),
        ({"one": None}, "a b c"),
        ({"one.nothing": None}, ""),
        ({"one.label": ("a", "b"), "one.score": (97.0 + 1,)}, "a"),
        ({"one.score": (True, 98)}, "a"),
    ],
)
def test_conditions(when: Mapping[str, Any], runs: str) -> None:
    found = chain({"one": (echo(), {"text": "text"}, None), "two": (echo(), {"text": "text"}, when)})(["a", "b", "c"])
    assert " ".join(row["two"]["label"] for row in found if row["two"]) == runs


def test_true_is_not_one() -> None:
    pipe = chain(
        {"one": (echo(), {"text": "text"}, {"text": (1,)}), "two": (echo(), {"text": "text"}, {"text": (True,)})}
    )
    rows: list[Any] = [{"text": True}, {"text": 1}]
    assert [[name for name, result in row.items() if result] for row in pipe(rows)] == [["two"], ["one"]]


def test_items_that_are_left_out_keep_their_place() -> None:
    pipe = chain(
        {
            "parts": (None, {"text": "text"}, None),
            "one": (echo(), {"text": "parts.*.text"}, {"parts.*.text": ("Yes.",)}),
            "two": (echo(), {"text": "one.*.label"}, None),
        }
    )
    [row, empty] = pipe(["No. Yes. No.", " "])
    assert [item and item["label"] for item in row["one"]] == [item and item["label"] for item in row["two"]]
    assert [item and item["label"] for item in row["two"]] == [None, "Yes.", None]
    assert (empty["parts"], empty["one"], empty["two"]) == ([], [], [])
    rows: list[Any] = [{"text": {"a": ["x", "y"], "b": ["z"]}}, {"text": {"a": "x", "b": []}}]
    found = chain({"one": (echo(), {"text": "text.a.*", "text_pair": "text.b.*"}, None)}).results_or_failures(rows)
    assert [getattr(outcome, "message", None) for outcome in found] == [
        "the lists have different numbers of items: 'text.a' 2, 'text.b' 1",
        "'text.a' is not a list",
    ]


def test_what_needs_a_step_that_did_not_run_does_not_run() -> None:
    pipe = chain(
        {
            "one": (echo(), {"text": "text"}, {"text": ("a",)}),
            "two": (echo(), {"text": "one.label"}, None),
            "other": (echo(), {"text": "text"}, {"one": (None,)}),
        }
    )
    found = [{name: value and value["label"] for name, value in row.items()} for row in pipe(["a", "b"])]
    assert found == [{"one": "a", "two": "a", "other": None}, {"one": None, "two": None, "other": "b"}]


def test_counts_are_of_rows_and_of_all_steps_work() -> None:
    stats, alone = RunStats(), RunStats()
    list(three().stream(TEXTS, stats))
    list(echo().stream(TEXTS, alone))
    assert stats.rows == len(TEXTS)
    assert stats.tokens > 2 * alone.tokens
    assert set(stats.seconds) == set(alone.seconds)


def test_who_watches_sees_the_rows_of_the_whole() -> None:
    from dataclasses import replace

    seen: list[tuple[str, Any]] = []
    pipe = three()
    pipe = replace(pipe, calls=replace(pipe.calls, watch=lambda stage, rows: seen.append((stage, list(rows)))))
    found = pipe(TEXTS)
    ran = {row for stage, rows in seen if stage == "again.model" for row in rows}
    assert ran == {number for number, row in enumerate(found) if row["again"] is not None}
    assert {row for stage, rows in seen if stage == "each.tokenizer" for row in rows} == set(range(len(TEXTS)))


def test_a_stage_that_breaks_its_contract_ends_the_run() -> None:
    class Nothing(EchoTokenizer):
        def encode(self, examples: Sequence[Example]) -> list[Encoding]:
            return []

    with pytest.raises(StageError, match="no encoding for text 0"):
        three(tokenizer=Nothing())(TEXTS)


def test_its_text_does_not_come_in_pieces() -> None:
    with pytest.raises(UsageError, match="the steps first, again, sentences, each returns no text in pieces; call it"):
        three().stream_text("a")


def test_the_results_that_are_judged_are_those_of_the_last_step() -> None:
    pipe = chain({"one": (echo(), {"text": "text"}, None), "two": (echo(), {"text": "text"}, {"text": ("a", "b ~m")})})
    first, second, third = pipe.judged_results(["a", "b ~m", "c"])
    assert first == echo()("a")
    assert isinstance(second, RowFailure)
    assert second.stage == "one.model"
    assert isinstance(third, RowFailure)
    assert third.message == "the step 'two' did not run on this row, see its 'when'"
    assert list(echo().judged_results(["a"])) == [echo()("a")]


def test_paths_find_what_stands_there() -> None:
    """A path to every place in random data finds it, and one beside it finds nothing."""
    random_ = random.Random(14)

    def make(depth: int) -> Any:
        kind = random_.choice(["text", "map", "list"]) if depth else "map"
        if kind == "map" and depth < 4:
            return {
                random_.choice(string.ascii_letters) + str(n): make(depth + 1) for n in range(random_.randint(1, 4))
            }
        if kind == "list" and depth < 4:
            return [make(depth + 1) for _ in range(random_.randint(0, 4))]
        return random_.choice(["text", 0, False, 1.5, ""])

    def places(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        if path:
            yield path, value
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in inner:
            yield from places(item, (*path, str(key)))

    tried = 0
    for _ in range(200):
        data = make(0)
        for words, value in places(data, ()):
            path = FieldPath.parse(".".join(words))
            assert str(path) == ".".join(words)
            assert path.find(data) is value
            with pytest.raises(LookupError, match="has no"):
                FieldPath.parse(f"{path}.beside").find(data)
            numbers = [place for place, word in enumerate(words) if word.isdecimal()]
            if numbers:  # a star in the place of a number is that item
                star = FieldPath(tuple("*" if place == numbers[-1] else word for place, word in enumerate(words)))
                assert star.find(data, int(words[numbers[-1]])) is value
                assert star.each == FieldPath(words[: numbers[-1]])
            tried += 1
    assert tried > 2_000


def test_null_on_the_way_is_null() -> None:
    assert FieldPath.parse("a.b.c").find({"a": {"b": None}}) is None
    with pytest.raises(LookupError, match=r"'a\.b': 'a' has no 'b'"):
        FieldPath.parse("a.b").find({"a": "text"})
    with pytest.raises(LookupError, match="'b': the example has no 'b'"):
        FieldPath.parse("b").find({"a": 1})
    assert FieldPath.parse("a.0").find({"a": {"0": "key"}}) == "key"


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "*", "*.a", "a b", "a[0]", "a.*.b.*", "a|b", None, 7, "a." * 20 + "a"]
)
def test_what_is_not_a_path_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a path|several|words"):
        FieldPath.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("  He paid 3.50 dollars... “Really?” Yes.\n", ["He paid 3.50 dollars...", "“Really?”", "Yes."]),
        ("See e.g. this one. Done", ["See e.g. this one.", "Done"]),
        ("第一句。第二句！", ["第一句。", "第二句！"]),  # noqa: RUF001 - the marks of the language
        ("A heading\n\nA text\nover lines. End", ["A heading", "A text\nover lines.", "End"]),
        ("", []),
        (" \n ", []),
        ("." * 5, ["....."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    found = sentences(text)
    assert [part["text"] for part in found] == expected
    assert all(text[part["start"] : part["end"]] == part["text"] for part in found)
    json.dumps(found)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("." * 100_000 + "a", 1),
        (" " * 100_000, 0),
        ("a" + "\n " * 50_000 + "\nb", 2),
        ('."' * 50_000, 1),
        ("A. " * 30_000, 30_000),
    ],
)
def test_sentences_of_long_texts_take_no_square_of_their_length(text: str, count: int) -> None:
    """With a pattern that tries again for each mark these take minutes."""
    assert len(sentences(text)) == count


def test_python_holds_it_like_any_pipeline() -> None:
    class Closing(EchoModel):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    shared, own = Closing(), Closing()
    pipe = chain(
        {
            "one": (echo(model=shared), {"text": "text"}, None),
            "two": (echo(model=shared), {"text": "text"}, None),
            "three": (echo(model=own), {"text": "text"}, None),
        }
    )
    frame = pa.table({"review": ["a", None, "b"], "other": [1, 2, 3]})
    found = pipe.map(frame, fields={"text": "review"}, missing="skip")
    assert found.column_names == ["review", "other", "one", "two", "three"]
    assert [result and result["label"] for result in found["two"].to_pylist()] == ["a", None, "b"]
    assert repr(pipe) == "<Pipeline steps one, two, three; device cpu float32>"
    with ThreadPoolExecutor(4) as threads:
        all_found: list[Any] = list(threads.map(pipe, [TEXTS] * 8))
    assert all_found == [pipe(TEXTS)] * 8
    assert (
        len({id(step.pipeline.locks.model) for step in pipe.steps.values() if step.pipeline} | {id(pipe.locks.model)})
        == 1
    )
    with pipe:
        pass
    assert (shared.closed, own.closed) == (1, 1)
    with pytest.raises(UsageError, match="closed"):
        pipe("a")
