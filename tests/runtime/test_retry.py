"""Errors that may pass: the call is made again, so often and after such waits, and only for such classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from echo_job import EchoModel, EchoPostprocessor, echo, echo_config

from pipeline_kit.contract.types import ModelOutput, Result, RunStats, TokenBatch
from pipeline_kit.errors import RowFailure, TransientError
from pipeline_kit.runtime.calls import StageCalls


def failing(times: int, error: BaseException) -> tuple[list[int], Callable[[Sequence[str]], Sequence[str]]]:
    calls: list[int] = []

    def call(items: Sequence[str]) -> Sequence[str]:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return ["done"]

    return calls, call


@pytest.mark.parametrize(
    ("times", "error", "retries", "fraction", "slept"),
    [
        (0, ConnectionResetError("lost"), 2, 1.0, []),
        (1, ConnectionResetError("lost"), 2, 1.0, [1.0]),
        (2, TimeoutError(), 2, 1.0, [1.0, 2.0]),
        (9, TransientError("busy"), 3, 1.0, [1.0, 2.0, 4.0]),
        (99, TimeoutError(), 8, 0.5, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]),
        (1, type("ConnectionError", (OSError,), {})("of a library"), 2, 1.0, [1.0]),
        (1, OSError("no"), 2, 1.0, []),
        (1, ValueError("no"), 2, 1.0, []),
        (1, MemoryError(), 2, 1.0, []),
    ],
    ids=str,
)
def test_a_call_is_retried_so_often_after_such_waits(
    times: int, error: BaseException, retries: int, fraction: float, slept: list[float]
) -> None:
    waits: list[float] = []
    calls, call = failing(times, error)
    stats = RunStats()
    found = StageCalls(retries, 1.0, None, waits.append, lambda: fraction).call("model", call, ["x"], [7], stats)
    assert found == ["done"] if len(slept) == times else [RowFailure.of(7, "model", error)]
    assert (waits, len(calls), stats.retries) == (slept, len(slept) + 1, len(slept))


def test_an_interruption_is_not_retried() -> None:
    calls, call = failing(1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        StageCalls(2).call("model", call, ["x"], [0], RunStats())
    assert len(calls) == 1


class Flaky(EchoModel):
    """Fails `times` times before it works, or always for a row with this id."""

    def __init__(self, times: int, never: int = -1) -> None:
        self.times, self.never, self.sizes = times, never, list[int]()

    def forward(self, batch: TokenBatch) -> ModelOutput:
        self.sizes.append(len(batch.lengths))
        if len(self.sizes) <= self.times or (batch.input_ids == self.never).any():
            raise ConnectionError("the server is away")
        return super().forward(batch)


def run(model: Flaky, texts: Sequence[str]) -> tuple[list[Result | RowFailure], int, int]:
    waits: list[float] = []
    pipe = replace(echo(echo_config("unused"), model=model), calls=StageCalls(2, sleep=waits.append))
    stats = RunStats()
    return list(pipe.results_or_failures(texts, stats)), stats.retries, len(waits)


def test_a_flaky_stage_costs_no_row_and_is_counted() -> None:
    model = Flaky(2)
    found, *counts = run(model, ["a", "b", "c"])
    assert [row["label"] for row in found] == ["a", "b", "c"]  # type: ignore[index]
    assert (model.sizes, counts) == ([3, 3, 3], [2, 2])


def test_a_row_that_always_fails_is_found_without_waiting_for_each_half() -> None:
    found, *counts = run(Flaky(0, never=ord("b")), ["a", "b", "c", "d"])
    assert [isinstance(row, RowFailure) for row in found] == [False, True, False, False]
    assert found[1] == RowFailure(1, "model", "ConnectionError", "the server is away")
    assert counts == [2, 2], "only the whole batch is tried again"


class Away(EchoPostprocessor):
    """Fails `left` times in `reduce`, with an error that may pass."""

    left = 0

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        self.left -= 1
        if self.left >= 0:
            raise ConnectionError("the server is away")
        return output


@pytest.mark.parametrize(("times", "failed"), [(2, False), (99, True)])
def test_an_error_in_reduce_is_retried_too_and_named_after_its_stage(times: int, failed: bool) -> None:
    post = Away()
    post.left = times
    pipe = replace(echo(echo_config("unused"), postprocessor=post), calls=StageCalls(2, sleep=lambda seconds: None))
    [found] = pipe.results_or_failures(["a"])
    failure = RowFailure(0, "postprocessor", "ConnectionError", "the server is away")
    assert found == failure if failed else not isinstance(found, RowFailure)


def test_the_watch_sees_each_row_once_and_halves_as_they_are_called() -> None:
    seen: list[tuple[str, list[int]]] = []

    def call(items: Sequence[str]) -> Sequence[str]:
        if "bad" in items:
            raise ValueError("no")
        return items

    calls = StageCalls(watch=lambda stage, rows: seen.append((stage, list(rows))))
    found = calls.call("model", call, ["a", "a", "bad", "b"], [4, 4, 5, 6], RunStats())
    assert found == ["a", "a", RowFailure(5, "model", "ValueError", "no"), "b"]
    assert [rows for _, rows in seen] == [[4, 5, 6], [], [4], [], [5, 6], [], [5], [], [6], []]
